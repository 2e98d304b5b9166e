"""From rows to contrasts: two arms of a cell, paired by seed, on any axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.experiments.evidence import curves
from scripts.experiments.evidence.predictions import FAMILY, Prediction
from scripts.experiments.evidence.stats import Difference, difference, holm

Run = Mapping[str, Any]
Runs = Mapping[tuple[str, str, str], Sequence[Run]]


PLAIN: dict[str, Any] = {
    "family": "reverse",
    "stages": "forward",
    "changes": "",
    "samples": None,
    "refresh": None,
    "rate": 1e-3,
}
"""What a run is where nothing else is said."""


def grouped(rows: Sequence[Run]) -> Runs:
    """Rows of the tables by part, regime and arm."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for row in rows:
        found.setdefault((row["experiment"], row["regime"], row["arm"]), []).append(row)
    return found


def pick(runs: Runs, part: str, regime: str, arm: str, **where: Any) -> dict[int, Run]:
    """The runs of an arm in a part of the programme, by seed; ``where`` differs from ``PLAIN``.

    Raises:
        ValueError: ``where`` does not say which of several runs of a seed is meant.
    """
    wanted = PLAIN | where
    found = [
        row for row in runs.get((part, regime, arm), ()) if all(row[name] == value for name, value in wanted.items())
    ]
    by_seed = {row["seed"]: row for row in found}
    if len(by_seed) != len(found):
        raise ValueError(f"two runs of one seed: {wanted}")
    return by_seed


def pairs(first: dict[int, Run], second: dict[int, Run]) -> list[tuple[Run, Run]]:
    """The runs of the seeds that both have."""
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def by_area(both: list[tuple[Run, Run]], axis: str) -> Difference:
    """Of the mean accuracy over log cost, up to what both have spent."""
    return difference(*np.array([curves.areas(one, other, axis) for one, other in both]).T)


def by_final(both: list[tuple[Run, Run]], axis: str = "step") -> Difference:
    """Of the accuracy at the cost where the cheaper of the two ends; at equal steps, at the end of the programme's."""
    found = []
    for one, other in both:
        a, b = curves.curve(one, axis), curves.curve(other, axis)
        planned = one.get("steps", np.inf) if axis == "step" else np.inf
        end = min(a[0][-1], b[0][-1], planned)
        found.append((curves.value_at(*a, end), curves.value_at(*b, end)))
    return difference(*np.array(found).T)


def by_second(both: list[tuple[Run, Run]]) -> Difference:
    """Of the second skill where the new accuracy is what the worse of the two reaches at best."""
    found = []
    for one, other in both:
        new = min(max(one["accuracy"]), max(other["accuracy"]))
        found.append((curves.at_equal(one, new), curves.at_equal(other, new)))
    return difference(*np.array(found).T)


def by_tokens(both: list[tuple[Run, Run]], target: float) -> Difference:
    """Of teacher tokens until an accuracy, as a share of the second run's that is saved; runs that never reach it count
    as reaching it at their end (a restricted mean)."""
    spent = []
    for pair in both:
        costs = [curves.curve(run, "teacher") for run in pair]
        spent.append([min(curves.cost_of(x, y, target), x[-1]) for x, y in costs])
    one, other = np.array(spent).T
    # Where the second run begins above the target there is nothing to save: that pair is left out.
    saved = 1 - np.divide(one, other, out=np.full_like(one, np.nan), where=other > 0)
    return difference(saved, np.zeros(len(one)))


def target(runs: Runs, regime: str) -> float:
    """a*: halfway between uniform's mean accuracy at its start and at its end, of the calibration's seeds."""
    found = pick(runs, "E0", regime, "uniform").values()
    return float(np.mean([(run["accuracy"][0] + run["accuracy"][-1]) / 2 for run in found]))


def of(prediction: Prediction, runs: Runs) -> Difference:
    """What a prediction is about.

    Raises:
        ValueError: There is no pair of runs.
    """
    p = prediction
    one, other = dict(p.where), dict(p.where) | dict(p.other)
    both = pairs(pick(runs, p.part, p.regime, p.arm, **one), pick(runs, p.part, p.regime, p.against, **other))
    if not both:
        raise ValueError(f"{p.name}: no run of {p.arm} and {p.against} in {p.part}, {p.regime}")
    if p.measure == "tokens":
        return by_tokens(both, target(runs, p.regime))
    if p.measure == "second":
        return by_second(both)
    return by_final(both, p.axis) if p.measure == "final" else by_area(both, p.axis)


def registered(runs: Runs) -> list[tuple[str, str, Difference, float]]:
    """The registered family: regime, arm, difference to uniform, and p adjusted by Holm's method."""
    found = [
        (regime, arm, by_area(pairs(pick(runs, "E1", regime, arm), pick(runs, "E1", regime, "uniform")), "step"))
        for regime, arm in FAMILY
    ]
    adjusted = holm([gap.p for _, _, gap in found])
    return [(*one, float(p)) for one, p in zip(found, adjusted, strict=True)]
