"""Arms beside each other at an equal budget, and what their differences over paired seeds are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, ttest_1samp
from statsmodels.stats.multitest import multipletests

Row = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]
PRICES = {"price 1:1:3": (1.0, 1.0, 3.0), "price 1:8:3": (1.0, 8.0, 3.0)}
"""Of a token that the student generates, one that the teacher reads or writes, and one that trains."""
BUDGETS = ("step", "rows", "teacher", *PRICES)


def spent(row: Row, budget: str) -> FloatArray:
    """What a run had spent at each of its points."""
    if budget not in PRICES:
        return np.asarray(row[budget], np.float64)
    generated, teacher, trained = PRICES[budget]
    sums = {name: np.asarray(row[name], np.float64) for name in ("student", "estimate", "teacher", "trained")}
    return generated * (sums["student"] + sums["estimate"]) + teacher * sums["teacher"] + trained * sums["trained"]


def area(row: Row, budget: str, low: float, high: float) -> float:
    """Mean accuracy over the logarithm of what was spent, between two amounts; linear between the run's points.

    A run's first point is its start, with what an estimate has cost by then: before it the accuracy is that of the start.
    A start at 0, which has no logarithm, stands at a sixteenth of the next point.
    """
    amount = spent(row, budget)
    amount[0] = max(amount[0], amount[1] / 16)
    grid = np.linspace(np.log(low), np.log(high), 257)
    values = np.interp(grid, np.log(amount), np.asarray(row["accuracy"], np.float64))
    return float(np.trapezoid(values, grid) / (grid[-1] - grid[0]))


def advantage(row: Row, other: Row, budget: str) -> float:
    """By how much a run's area exceeds another's, from the first point of either to the end of the cheaper one.

    NaN where the cheaper one ends before the other has begun.
    """
    amounts = [spent(each, budget) for each in (row, other)]
    low, high = min(amount[1] for amount in amounts), min(amount[-1] for amount in amounts)
    return area(row, budget, low, high) - area(other, budget, low, high) if high > low > 0 else float("nan")


@dataclass(frozen=True)
class Contrast:
    """An arm minus another one over paired seeds.

    Attributes:
        seeds: Number of pairs.
        mean: Of the differences.
        interval: 95 %, bias-corrected and accelerated bootstrap over seeds.
        p: Of a t-test against 0.
    """

    seeds: int
    mean: float
    interval: tuple[float, float]
    p: float


def contrast(differences: Sequence[float]) -> Contrast:
    """What paired differences say; without an interval where they do not vary or are fewer than three."""
    values = np.asarray([value for value in differences if not np.isnan(value)], np.float64)
    if len(values) < 3 or np.ptp(values) == 0:
        mean = float(values.mean()) if len(values) else float("nan")
        return Contrast(len(values), mean, (float("nan"), float("nan")), float("nan"))
    found = bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return Contrast(len(values), float(values.mean()), (float(low), float(high)), float(ttest_1samp(values, 0).pvalue))


def holm(contrasts: Mapping[Any, Contrast]) -> dict[Any, float]:
    """p values corrected for their number (Holm); NaN stays NaN and does not count."""
    known = [name for name, found in contrasts.items() if not np.isnan(found.p)]
    corrected = dict.fromkeys(contrasts, float("nan"))
    if known:
        _, values, _, _ = multipletests([contrasts[name].p for name in known], method="holm")
        corrected |= dict(zip(known, map(float, values), strict=True))
    return corrected


def pairs(rows: Sequence[Row], arm: str, other: str) -> list[tuple[Row, Row]]:
    """The runs of two arms by seed; seeds that only one of them has are left out."""
    by_seed = [{row["seed"]: row for row in rows if row["arm"] == name} for name in (arm, other)]
    return [(by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def contrasts(rows: Sequence[Row], other: str, budget: str) -> dict[str, Contrast]:
    """Every arm minus ``other``, of the runs of one regime."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {
        arm: contrast([advantage(a, b, budget) for a, b in pairs(rows, arm, other)]) for arm in arms if arm != other
    }
