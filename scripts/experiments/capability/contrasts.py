"""What a run is worth, and differences to ``task_static``, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scripts.experiments.capability.headroom import R
from scripts.experiments.capability.problems import NAMES
from scripts.experiments.evidence.stats import Difference, difference, holm

Row = dict[str, Any]
Measure = Callable[[Row], float]
STATIC = "task_static"
FAMILY = ("uniform", "one_hot", "kl_headroom", "gains", "greedy", "read")
"""Contrasts of the final utility to ``task_static`` whose p-values are adjusted together; others are described."""
FALL = 0.05
"""A decision has hurt a capability where its accuracy on the way, of 128 problems, falls by more."""


def utility(row: Row) -> float:
    """U = r · accuracy on the held-out problems after the run."""
    return float(R @ np.array(row["final"]))


def gain(row: Row) -> float:
    """What the run has added to U."""
    return float(R @ (np.array(row["final"]) - np.array(row["before"])))


def area(row: Row) -> float:
    """The mean of U over the run, by its decisions: those that are not complete at the end are left out."""
    values = np.array(row["accuracy"]) @ R
    return float(((values[1:] + values[:-1]) / 2).mean())


def hurts(row: Row) -> float:
    """The share of decisions and capabilities in which accuracy fell by more than ``FALL``."""
    return float(np.mean(np.diff(row["accuracy"], axis=0) < -FALL))


def lowest(row: Row) -> float:
    """The accuracy after the run of the worst capability, the one out of reach aside."""
    return min(value for name, value in zip(NAMES, row["final"], strict=True) if name != "deep")


def pick(rows: Sequence[Row], phase: str, arm: str) -> dict[int, Row]:
    """The runs of an arm by seed."""
    return {row["seed"]: row for row in rows if (row["phase"], row["arm"]) == (phase, arm)}


def against(
    rows: Sequence[Row],
    arm: str,
    measure: Measure = utility,
    phase: str = "policies",
    other: str = STATIC,
    base: str = "policies",
) -> Difference:
    """Of an arm to another one, at the seeds that both have.

    Raises:
        ValueError: There is none.
    """
    one, two = pick(rows, phase, arm), pick(rows, base, other)
    both = sorted(one.keys() & two.keys())
    return difference([measure(one[seed]) for seed in both], [measure(two[seed]) for seed in both])


def registered(rows: Sequence[Row]) -> list[tuple[str, Difference, float]]:
    """The family: arm, difference of the final U, p by Holm's method."""
    found = [against(rows, arm) for arm in FAMILY]
    adjusted = holm([gap.p for gap in found])
    return [(arm, gap, float(p)) for arm, gap, p in zip(FAMILY, found, adjusted, strict=True)]
