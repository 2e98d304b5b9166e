"""The face of a policy that shares tokens among capabilities: what it is told, and what it must answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """What is known before a decision. Arrays are float64 (C,), in the order of the capabilities' names.

    Attributes:
        r: Requirement, on the simplex.
        scores: What the probes say now, in [0, 1].
        score_se: Their standard errors. One of 0 means that the score is exact: a probe that was always or never right
            does not mean that, so give it the error of (k + 1) / (n + 2).
        spent: Tokens so far.
        left: Tokens left of the whole budget, those of the decision to come included.
        decision: Index of the decision to come, from 0.
        divergence: Mean reverse KL from the teacher per token, in nats, on a capability's rows since the last decision,
            or when it was drawn last; ``None``: one of them has never been drawn.
        tokens: That the decision to come will train on, as far as is known; ``None``: as the settings say.
    """

    r: FloatArray
    scores: FloatArray
    score_se: FloatArray
    spent: FloatArray
    left: float
    decision: int
    divergence: FloatArray | None = None
    tokens: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a decision. Arrays are float64 (C,).

    Attributes:
        mix_planned: What was proposed.
        mix_realised: Tokens that were trained on.
        before: Scores before it. Where they are the last decision's ``after``, they are taken for the same measurement.
        after: Scores after it.
        se: Standard errors of ``after``.
        reward: As :func:`paced_verl.capability.reward.reward` has it, or another number to be made large.
        before_se: Standard errors of ``before``; ``None``: as ``se``.
        utility: What the run is really after, where it was measured.
    """

    mix_planned: FloatArray
    mix_realised: FloatArray
    before: FloatArray
    after: FloatArray
    se: FloatArray
    reward: float
    before_se: FloatArray | None = None
    utility: float | None = None


class Policy(Protocol):
    """Decides on mixes, one after the other."""

    def propose(self, state: State) -> FloatArray:
        """The mix of the decision to come, float64 (C,). Asking twice gives the same answer."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from a decision."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learnt, as JSON holds it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, or raise ValueError."""

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, of the last proposal."""


@runtime_checkable
class KnowsTransfer(Protocol):
    """What a policy may be, besides: one that says what each capability's tokens do to all scores."""

    def transfer(self) -> tuple[FloatArray, FloatArray] | None:
        """T (C, C) of :mod:`paced_verl.capability.gains` and its deviations; ``None``: nothing was observed yet."""
