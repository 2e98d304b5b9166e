"""What deciding can gain, by the product's own ``paced_verl.capability.headroom`` and the interventions' runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.capability.headroom import Headroom, Transfer, fit_transfer, headroom
from paced_verl.capability.optimum import Aim
from scripts.experiments.capability.distil import DECISIONS
from scripts.experiments.capability.problems import NAMES, REQUIREMENT
from scripts.experiments.capability.programme import CALIBRATION, INTERVENTIONS, SHORT
from scripts.experiments.capability.world import HELD_OUT

FLOOR = 0.02
R = np.array([REQUIREMENT[name] for name in NAMES])
Row = dict[str, Any]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Attributes:
    before: (C,) mean accuracy before.
    gains: (M, seeds, C) of each intervention.
    transfer, headroom: What the product makes of them.
    """

    before: FloatArray
    gains: FloatArray
    transfer: Transfer
    headroom: Headroom


def found(rows: Sequence[Row]) -> Found:
    """Of the rows of the interventions. A gain is to the same student before, so that students who start elsewhere do
    not blur it; its error is the deviation between seeds, over all interventions, or that of the held-out problems."""
    by = {(row["arm"], row["seed"]): row for row in rows if row["phase"] == "interventions"}
    after = np.array([[by[arm, seed]["final"] for seed in CALIBRATION] for arm in INTERVENTIONS])
    first = np.array([by["static", seed]["before"] for seed in CALIBRATION])
    gains, seeds = after - first, len(CALIBRATION)
    before = first.mean(axis=0)
    judged = np.sqrt(0.25 / (HELD_OUT * seeds))
    between = np.sqrt(gains.var(axis=1, ddof=1).mean(axis=0) / seeds)
    se = np.broadcast_to(np.maximum(between, np.sqrt(2) * judged), (len(gains), len(NAMES)))
    mixes = np.array([[mix.get(name, 0.0) for name in NAMES] for mix in INTERVENTIONS.values()])
    transfer = fit_transfer(mixes, before, np.full(len(NAMES), judged), before + gains.mean(axis=1), se)
    aim = Aim(r=R, static=R, horizon=DECISIONS / SHORT, floor=FLOOR)
    return Found(before, gains, transfer, headroom(transfer, before, aim))
