"""What a whole run generates and has scored, before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paced_verl.config import PacedConfig
from paced_verl.launch.advice import ENOUGH
from paced_verl.pacing.schedule import Schedule, refresh_due


@dataclass(frozen=True)
class Price:
    """Counts of a whole run.

    Attributes:
        rollouts: Responses of the student that train.
        least, most: Responses that only measure pass rates, at least and at most.
        scorings: Responses that a teacher scores, at most.
        cheaper: What to set where measuring costs too much.
    """

    rollouts: int
    least: int
    most: int
    scorings: int
    cheaper: str

    @classmethod
    def of(cls, paced: PacedConfig, schedule: Schedule, prompts: int, batch: int, n: int) -> Price:
        """The price of a run.

        Args:
            paced: The parsed block.
            schedule: Its stages, in steps.
            prompts: Number of training prompts.
            batch: Prompts a step.
            n: Responses a prompt where the student responds.
        """
        draws = {"student": 0, "teacher": 0}
        for stage in schedule.stages:
            draws[stage.responses] += (stage.last - stage.first + 1) * batch
        rates = paced.pass_rate
        times = len(refreshes(paced, schedule))
        drawn = measured_when_drawn(paced, prompts, batch, sum(draws.values()))
        least, most = drawn if rates.refresh == "draw" else (times * prompts * rates.samples,) * 2
        at_end = prompts * rates.samples if rates.at_end else 0
        return cls(
            rollouts=draws["student"] * n,
            least=least + at_end,
            most=most + at_end,
            scorings=draws["student"] * n + draws["teacher"],
            cheaper=_cheaper(paced, drawn, sum(draws.values()) < prompts, times),
        )

    def lines(self) -> Iterator[str]:
        """For the plan; with a warning where most of the rollouts measure."""
        estimates = f"{self.most:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"
        rollouts = self.rollouts + self.most
        share = f" ({self.most / rollouts:.0%})" if rollouts else ""
        yield (
            f"whole run: {rollouts:,} rollouts, {estimates} of them{share} for estimates; at most {self.scorings:,} "
            "teacher scorings"
        )
        if self.least > self.rollouts:
            yield f"warning: more than half of the rollouts only measure pass rates; {self.cheaper}"


def refreshes(paced: PacedConfig, schedule: Schedule) -> list[int]:
    """The steps before which the pass rates of all prompts are estimated."""
    settings, due = paced.pass_rate, []
    last: int | None = None if settings.file is None else 1
    for step in range(1, schedule.stages[-1].last + 1):
        if refresh_due(step, last, settings.refresh, settings.every_steps, schedule):
            due.append(step)
            last = step
    return due


def measured_when_drawn(paced: PacedConfig, prompts: int, batch: int, draws: int) -> tuple[int, int]:
    """Responses that measure at least and at most, where prompts are measured when they are about to be drawn.

    Args:
        paced: The parsed block.
        prompts: Number of training prompts.
        batch: Prompts a step.
        draws: Prompts drawn in the whole run.
    """
    rates, sampler = paced.pass_rate, paced.sampler
    candidates = draws + (rates.ahead - 1) * batch if sampler.power else draws
    passed_over = not sampler.power and sampler.skip_zero_weight and paced.weight.can_be_zero
    least = min(prompts, candidates)
    most = prompts if passed_over else least
    if rates.max_age is not None:
        most = max(most, candidates)
    return least * rates.samples, most * rates.samples


def _cheaper(paced: PacedConfig, drawn: tuple[int, int], below: bool, times: int) -> str:
    """What saves estimates at the least loss that docs/experiments.md has seen: ``drawn`` as of
    :func:`measured_when_drawn`, ``below``: fewer prompts are drawn than there are."""
    rates = paced.pass_rate
    if rates.at_end:
        return "paced.pass_rate.at_end=false leaves out the last estimate, which trains nothing"
    if below and rates.refresh != "draw":
        rollouts = f"{drawn[0]:,}" if drawn[0] == drawn[1] else f"{drawn[0]:,} to {drawn[1]:,}"
        return f"paced.pass_rate.refresh=draw measures what is drawn and no more, {rollouts} rollouts"
    if times > 1:
        return "paced.pass_rate.refresh=start measures once, and from_training=true keeps up for free"
    if rates.samples > ENOUGH:
        return f"paced.pass_rate.samples={ENOUGH} costs {ENOUGH / rates.samples:.0%} of them"
    return "paced.pass_rate.file=… takes those of an earlier run"
