"""Which divergence, on whose responses, at which step: the stages of a run, in order and without gaps.

Steps are verl's: the first training step is 1. A stage that ends at step ``e`` trains steps up to and including ``e``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from paced_verl.errors import PacedError

Responses = Literal["teacher", "student"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run, in steps: trains ``first`` … ``last`` inclusive.

    Attributes:
        index: Position in the schedule, from 0. Rows carry it, so the loss knows which divergence is theirs.
        divergence: A registered divergence (:func:`paced_verl.divergence.get_divergence`).
        responses: Whose responses are trained on.
        towards: The divergence it turns into, if any, linearly over the first ``over`` of the stage.
        over: In (0, 1].
        parameters: Keyword parameters of that divergence.
        lr_factor: Multiplies the optimizer's learning rate during the stage.
        coef: Factor of the divergence in the loss at the first and at the last step, linear between.
    """

    index: int
    first: int
    last: int
    divergence: str
    responses: Responses
    towards: str | None = None
    over: float = 1.0
    lr_factor: float = 1.0
    parameters: dict[str, Any] = field(default_factory=dict)
    coef: tuple[float, float] = (1.0, 1.0)

    def responses_per_prompt(self, n: int) -> int:
        """Responses that train: ``n`` of the student's own to a prompt, one of a teacher's."""
        return n if self.responses == "student" else 1

    def mix(self, step: int) -> float:
        """Share λ of ``towards`` at a step: 0 at the first step, 1 from the end of ``over`` on; 0 without it."""
        return min(1.0, self._progress(step) / self.over) if self.towards else 0.0

    def coef_at(self, step: int) -> float:
        """Factor of the divergence at a step."""
        start, end = self.coef
        return start + (end - start) * self._progress(step)

    @property
    def ramps(self) -> bool:
        """Whether anything moves over the stage, so that another end of it would change the steps before."""
        return self.towards is not None or self.coef[0] != self.coef[1]

    def _progress(self, step: int) -> float:
        """0 at the first step, 1 at the last, and within [0, 1] for a row that is trained in another stage."""
        return min(1.0, max(0.0, (step - self.first) / max(self.last - self.first, 1)))

    def __str__(self) -> str:
        divergence = f"{self.divergence} → {self.towards}" if self.towards else self.divergence
        text = f"stage {self.index + 1} (steps {self.first}–{self.last}): {divergence} on {self.responses} responses"
        if self.coef != (1.0, 1.0):
            text += f", × {self.coef[0]:g}" + (f" → {self.coef[1]:g}" if self.coef[1] != self.coef[0] else "")
        return text if self.lr_factor == 1.0 else f"{text}, learning rate × {self.lr_factor:g}"


@dataclass(frozen=True)
class Schedule:
    """The stages of a run of ``total_steps`` steps, covering it exactly."""

    stages: tuple[Stage, ...]

    @classmethod
    def from_ends(cls, ends: Sequence[int | float], stages: Sequence[dict[str, Any]], total_steps: int) -> Schedule:
        """Turn each stage's end, a step (int) or a fraction of the run (float, halves round up), into a range of steps.

        Args:
            ends: One end a stage, increasing; the last one must be the end of the run.
            stages: Keyword arguments of :class:`Stage` other than ``index``, ``first`` and ``last``.
            total_steps: Length of the run.

        Raises:
            PacedError: Stages overlap, are empty, or leave steps without a stage.
        """
        built: list[Stage] = []
        previous = 0
        for index, (end, stage) in enumerate(zip(ends, stages, strict=True)):
            last = end if isinstance(end, int) else math.floor(end * total_steps + 0.5)
            key = f"paced.schedule[{index}].until={end}"
            if last > total_steps:
                raise PacedError(f"{key} lies after the end of the run, which has {total_steps} steps.")
            if last <= previous:
                raise PacedError(
                    f"{key} is step {last}, but the stage before it ends at step {previous} of {total_steps}: stages "
                    "may not overlap or be empty. Give increasing ends, or more steps to the run."
                )
            built.append(Stage(index=index, first=previous + 1, last=last, **stage))
            previous = last
        if previous != total_steps:
            raise PacedError(
                f"paced.schedule ends at step {previous}, but the run has {total_steps} steps. "
                "Let the last stage end at 1.0 (the whole run)."
            )
        return cls(tuple(built))

    def at(self, step: int) -> Stage:
        """The stage that trains ``step`` (1 … total steps)."""
        for stage in self.stages:
            if step <= stage.last:
                return stage
        return self.stages[-1]

    def rows(self, batch: int, n: int) -> list[int]:
        """Rows of each step of the run.

        Args:
            batch: Prompts a step.
            n: Responses of the student to a prompt.
        """
        return [batch * self.at(step).responses_per_prompt(n) for step in range(1, self.stages[-1].last + 1)]

    def starts(self) -> tuple[int, ...]:
        """First step of every stage."""
        return tuple(stage.first for stage in self.stages)


def refresh_due(step: int, last_refresh: int | None, refresh: str, every_steps: int | None, schedule: Schedule) -> bool:
    """Whether pass rates must be estimated again before ``step`` is trained.

    Args:
        step: The step about to be trained.
        last_refresh: The step before which they were last estimated (1 for a table from a file); ``None``: never.
        refresh: ``paced.pass_rate.refresh``: ``start`` once; ``stage`` also at every stage switch; ``every`` also every
            ``every_steps`` steps; ``never`` not at all (the table comes from a file or from training rollouts), and
            ``draw`` not all of them at once.
    """
    if refresh in ("never", "draw"):
        return False
    if last_refresh is None:
        return True
    if refresh == "stage":
        return any(last_refresh < first <= step for first in schedule.starts())
    if refresh == "every":
        return step - last_refresh >= (every_steps or 1)
    return False
