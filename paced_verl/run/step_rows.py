"""What came back from a step: its rows as plain arrays, read from verl's queue once (``training.rows``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.protocol import IntArray
from paced_verl.run.sessions import Sessions, sessions

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepRows:
    """The B rows of a step, scored, before verl pads and balances them.

    Attributes:
        keys: verl's, ``{uid}_{session}_{output}``.
        prompts: Positions in the training set, (B,).
        stages: Index of the stage that each was drawn in, (B,).
        correct: Whether the response passes, bool (B,).
        weight: Loss weight, (B,).
        task: Factor of the task reward, (B,).
        asked: What the teacher was asked, by :data:`paced_verl.fields.TEACHER_NAMES`, (B,) each.
        responses: Token ids, one array a row.
        messages: The prompts, as the data have them.
    """

    keys: Sequence[str]
    prompts: IntArray
    stages: IntArray
    correct: npt.NDArray[np.bool_]
    weight: FloatArray
    task: FloatArray
    asked: Mapping[str, FloatArray]
    responses: Sequence[npt.NDArray[np.int64]]
    messages: Sequence[Any]

    @cached_property
    def sessions(self) -> Sessions:
        """Which rows are one rollout."""
        return sessions(self.keys)

    @property
    def responses_per_prompt(self) -> int:
        """The largest number of rollouts that a prompt has here."""
        return int(self.sessions.responses().max())

    def weight_factor(self) -> FloatArray:
        """What the loss weights are multiplied by, so that a prompt weighs the same whatever its number of rollouts.

        An asynchronous trainer may mix the rows of two stages; verl divides all by one number a prompt.
        """
        return (self.responses_per_prompt / self.sessions.responses()).astype(np.float32)

    def total(self, name: str) -> float:
        """The sum of a teacher's column, each rollout once."""
        return float(self.asked[name][self.sessions.last].sum())
