"""The decision rule for defaults: no harm where nothing is to be gained, and the most where something is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.contrasts import Runs, by_final, pairs, pick
from scripts.experiments.evidence.predictions import R0, R1, R2, R3, R4, R5
from scripts.experiments.evidence.stats import Difference, non_inferior

NOTHING_TO_GAIN, TO_GAIN = (R0, R1, R4), (R2, R3, R5)
AXIS = "price 1:8:3"
NOT_TO_BE_HAD = ("uniform", "uniform again", "uniform, smaller batch", "placebo", "oracle", "free estimates")


@dataclass(frozen=True)
class Candidate:
    """An arm beside uniform at equal price.

    Attributes:
        harm, gain: Differences of the accuracy at the end, by regime.
        harmless: Whether all of ``harm`` are above −.01 with 95 %.
    """

    arm: str
    harm: dict[str, Difference]
    gain: dict[str, Difference]

    @property
    def harmless(self) -> bool:
        return all(map(non_inferior, self.harm.values()))

    @property
    def mean(self) -> float:
        """Of the gains."""
        return float(np.mean([found.mean for found in self.gain.values()]))


def ranked(runs: Runs) -> list[Candidate]:
    """Those that do no harm first, then by their mean gain; the first one is the default if it is harmless."""

    def gap(arm: str, regime: str) -> Difference:
        return by_final(pairs(pick(runs, "E1", regime, arm), pick(runs, "E1", regime, "uniform")), AXIS)

    found = [
        Candidate(arm, {r: gap(arm, r) for r in NOTHING_TO_GAIN}, {r: gap(arm, r) for r in TO_GAIN})
        for arm in ARMS
        if arm not in NOT_TO_BE_HAD
    ]
    return sorted(found, key=lambda one: (not one.harmless, -one.mean))
