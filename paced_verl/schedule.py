"""Which divergence, on whose responses, at which step: the stages of a run, in order and without gaps.

Steps are verl's: the first training step is 1. A stage that ends at step ``e`` trains steps up to and including ``e``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Responses = Literal["teacher", "student"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run, in steps: trains ``first`` … ``last`` inclusive.

    Attributes:
        index: Position in the schedule, from 0. Rows carry it, so the loss knows which divergence is theirs.
        divergence: Name in :data:`paced_verl.divergence.DIVERGENCES`.
        parameters: Keyword parameters of that divergence.
        responses: Whose responses are trained on.
        lr_factor: Multiplies the optimizer's learning rate during the stage.
    """

    index: int
    first: int
    last: int
    divergence: str
    responses: Responses
    lr_factor: float = 1.0
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        text = (
            f"stage {self.index + 1} (steps {self.first}–{self.last}): {self.divergence} on {self.responses} responses"
        )
        return text if self.lr_factor == 1.0 else f"{text}, learning rate × {self.lr_factor:g}"


@dataclass(frozen=True)
class Schedule:
    """The stages of a run of ``total_steps`` steps, covering it exactly."""

    stages: tuple[Stage, ...]

    @classmethod
    def from_ends(cls, ends: Sequence[int | float], stages: Sequence[dict[str, Any]], total_steps: int) -> Schedule:
        """Turn each stage's end, a step (int) or a fraction of the run (float), into a range of steps.

        Args:
            ends: One end a stage, increasing; the last one must be the end of the run.
            stages: Keyword arguments of :class:`Stage` other than ``index``, ``first`` and ``last``.
            total_steps: Length of the run.

        Raises:
            ValueError: Stages overlap, are empty, or leave steps without a stage.
        """
        built: list[Stage] = []
        previous = 0
        for index, (end, stage) in enumerate(zip(ends, stages, strict=True)):
            last = end if isinstance(end, int) else round(end * total_steps)
            key = f"paced.schedule[{index}].until={end}"
            if last > total_steps:
                raise ValueError(f"{key} lies after the end of the run, which has {total_steps} steps.")
            if last <= previous:
                raise ValueError(
                    f"{key} is step {last}, but the stage before it ends at step {previous} of {total_steps}: stages "
                    "may not overlap or be empty. Give increasing ends, or more steps to the run."
                )
            built.append(Stage(index=index, first=previous + 1, last=last, **stage))
            previous = last
        if previous != total_steps:
            raise ValueError(
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

    def starts(self) -> tuple[int, ...]:
        """First step of every stage."""
        return tuple(stage.first for stage in self.stages)


def refresh_due(step: int, last_refresh: int | None, refresh: str, every_steps: int | None, schedule: Schedule) -> bool:
    """Whether pass rates must be estimated again before ``step`` is trained.

    Args:
        step: The step about to be trained.
        last_refresh: The step before which they were last estimated (1 for a table from a file); ``None``: never.
        refresh: ``paced.pass_rate.refresh``: ``start`` once; ``stage`` also at every stage switch; ``every`` also every
            ``every_steps`` steps; ``never`` not at all (the table comes from a file or from training rollouts).
    """
    if refresh == "never":
        return False
    if last_refresh is None:
        return True
    if refresh == "stage":
        return any(last_refresh < first <= step for first in schedule.starts())
    if refresh == "every":
        return step - last_refresh >= (every_steps or 1)
    return False
