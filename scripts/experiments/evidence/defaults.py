"""The decision rule for defaults: no harm where nothing is to be gained, and the most where something is.

All arms of a regime and a seed are read at one price, what uniform's planned steps cost there: read each at the end of
its own curve, an arm would be compared with a uniform run that is the shorter, the cheaper the arm is. The rule was
first written so, by :func:`~scripts.experiments.evidence.contrasts.by_final`, and changed when its results were known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.cells import FEWER, SHORT
from scripts.experiments.evidence.contrasts import Run, Runs, by_budget, pairs, pick
from scripts.experiments.evidence.predictions import R0, R1, R2, R3, R4, R5
from scripts.experiments.evidence.stats import Difference, difference, non_inferior

NOTHING_TO_GAIN, TO_GAIN = (R0, R1, R4), (R2, R3, R5)
RATIOS = ("price 1:1:3", "price 1:8:3")
DECIDES = "price 1:8:3"
"""Fixed here before the first reported run; the programme names both ratios, and not which decides."""
NOT_TO_BE_HAD = (
    "uniform",
    "uniform again",
    "uniform, smaller batch",
    "placebo",
    "oracle",
    "free estimates",
    "predicted",
)
SIMPLEST = ("weights", "root", "(1, 2)", "(2, 1)", "hard filter")
"""Where the best cannot be told apart, the first of these: the paper's own weights, then other kernels."""
Choice = tuple[str, str, dict[str, Any]]
"""An arm, the part of the programme that has it, and what differs. It is paired with that part's own uniform runs."""
OF_THE_MAP: tuple[Choice, ...] = tuple((arm, "E1", {}) for arm in ARMS if arm not in NOT_TO_BE_HAD)
CANDIDATES: tuple[Choice, ...] = (
    *OF_THE_MAP,
    *((arm, "E7", {"samples": samples}) for arm, samples in FEWER),
    ("weights", "E7", {"refresh": "every"}),
)
ONCE = tuple(
    one for one in CANDIDATES if "refresh" not in one[2] and ARMS[one[0]].block["pass_rate"]["refresh"] != "draw"
)
"""Those whose rows say how many samples they took."""
IN_TWO_STAGES: tuple[Choice, ...] = tuple((arm, "E5", {"stages": "two stages"}) for arm in SHORT if arm != "uniform")


@dataclass(frozen=True)
class Candidate:
    """An arm beside uniform at the price of uniform's planned steps.

    Attributes:
        harm, gain: Differences of accuracy, by regime.
        harmless: Whether all of ``harm`` are above −.01 with 95 %.
        mean: Of the gains, seed by seed.
    """

    arm: str
    harm: dict[str, Difference]
    gain: dict[str, Difference]

    @property
    def harmless(self) -> bool:
        return all(map(non_inferior, self.harm.values()))

    @cached_property
    def mean(self) -> Difference:
        """Seeds at which a regime is not affordable are left out."""
        if any(found.left_out for found in self.gain.values()):
            return Difference(np.empty(0), left_out=next(iter(self.gain.values())).seeds)
        return Difference(np.mean([found.gaps for found in self.gain.values()], axis=0))


def ranked(
    runs: Runs,
    axis: str = DECIDES,
    candidates: Sequence[Choice] = CANDIDATES,
    compared: Callable[[list[tuple[Run, Run]], str], Difference] = by_budget,
) -> list[Candidate]:
    """Those that do no harm first, then by their mean gain."""

    def candidate(arm: str, part: str, where: dict[str, Any]) -> Candidate:
        stages = {name: value for name, value in where.items() if name == "stages"}  # uniform's, too
        gaps = {
            regime: compared(
                pairs(pick(runs, part, regime, arm, **where), pick(runs, part, regime, "uniform", **stages)), axis
            )
            for regime in NOTHING_TO_GAIN + TO_GAIN
        }
        return Candidate(named(arm, where), *({r: gaps[r] for r in group} for group in (NOTHING_TO_GAIN, TO_GAIN)))

    found = [candidate(*one) for one in candidates]
    return sorted(found, key=lambda one: (not one.harmless, -np.nan_to_num(one.mean.mean, nan=-1.0)))


def named(arm: str, where: dict[str, Any]) -> str:
    """An arm with what differs from it, in words."""
    if "samples" in where:
        return f"{arm}, K = {where['samples']}"
    return f"{arm}, estimated every 12 steps" if "refresh" in where else arm


def as_good(candidates: list[Candidate]) -> list[Candidate]:
    """The harmless ones that the difference's 95 % interval does not tell from the best of them; the best first.

    Those of another part of the programme may have other students of a seed, which makes that interval wider.
    """
    harmless = [one for one in candidates if one.harmless and len(one.mean.gaps)]
    return [one for one in harmless if difference(harmless[0].mean.gaps, one.mean.gaps).t_interval[0] <= 0]


def chosen(candidates: list[Candidate]) -> Candidate | None:
    """The best harmless one; the simplest of those that are not told from it. ``None``: all do harm."""
    best = as_good(candidates)
    simple = [one for arm in SIMPLEST for one in best if one.arm == arm]
    return next(iter(simple + best), None)
