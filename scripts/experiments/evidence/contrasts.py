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
    "decay": None,
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


def matched(first: dict[int, Run], second: dict[int, Run]) -> list[tuple[Run, Run]]:
    """The runs of the seeds that both have."""
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def pairs(first: dict[int, Run], second: dict[int, Run]) -> list[tuple[Run, Run]]:
    """The same, of runs that begin with the same student: on another processor a seed makes another one.

    Raises:
        ValueError: Their accuracies before the first step differ.
    """
    both = matched(first, second)
    for one, other in both:
        starts = [run["accuracy"][0] for run in (one, other)]
        if starts[0] != starts[1]:
            raise ValueError(
                f"{one['regime']}, seed {one['seed']}: {one['arm']} of {one['experiment']} begins at {starts[0]:.4f}, "
                f"{other['arm']} of {other['experiment']} at {starts[1]:.4f}: these are two students"
            )
    return both


def planned(pair: tuple[Run, Run], axis: str) -> float:
    """The steps that the programme compares at, where these are the axis: some arms go on."""
    return min(run.get("steps", np.inf) for run in pair) if axis == "step" else np.inf


def by_area(both: list[tuple[Run, Run]], axis: str, since: float = 0.0) -> Difference:
    """Of the mean accuracy over log cost, up to what both have spent; at equal steps, to the end of the programme's."""
    return difference(*np.array([curves.areas(*pair, axis, planned(pair, axis), since) for pair in both]).T)


def by_final(both: list[tuple[Run, Run]], axis: str = "step") -> Difference:
    """Of the accuracy at the cost where the cheaper of the two ends; at equal steps, at the end of the programme's.

    Pairs are left out where that cost does not pay for one of the two up to its first measurement.
    """
    found = []
    for pair in both:
        end = min(planned(pair, axis), *(curves.cost(run, axis)[-1] for run in pair))
        found.append([_bought(run, axis, end) for run in pair])
    return difference(*np.array(found).T)


def by_budget(both: list[tuple[Run, Run]], axis: str) -> Difference:
    """Of the accuracy at what the second run's planned steps cost: one price for all that is compared with it.

    A run that ends below that price is read at its end; pairs are left out as in :func:`by_final`.
    """
    found = []
    for one, other in both:
        price = curves.paid_at(other, axis, other["steps"])
        found.append((_bought(one, axis, price), _bought(other, axis, price)))
    return difference(*np.array(found).T)


def _bought(run: Run, axis: str, price: float) -> float:
    """Accuracy for a price, or at the end of a run that costs less; NaN where it is not affordable."""
    x, y = curves.curve(run, axis)
    return curves.value_at(x, y, min(price, x[-1])) if curves.affordable(run, axis, price) else float("nan")


def by_second(both: list[tuple[Run, Run]]) -> Difference:
    """Of the second skill where the new accuracy is what the worse of the two reaches at best.

    Pairs are left out where one of the two has that accuracy before its first step.
    """
    found = []
    for one, other in both:
        new = min(max(one["accuracy"]), max(other["accuracy"]))
        found.append((curves.at_equal(one, new), curves.at_equal(other, new)))
    return difference(*np.array(found).T)


def by_tokens(both: list[tuple[Run, Run]], target: float) -> Difference:
    """Of teacher tokens until an accuracy, as a share of the second run's that is saved.

    Both are looked at up to what the cheaper of the two has spent in all; who has not reached it there counts as
    reaching it there (a restricted mean). Pairs that begin above it are left out: there is nothing to save.
    """
    one, other = np.array([_tokens_until(pair, target)[0] for pair in both]).T
    saved = 1 - np.divide(one, other, out=np.full_like(one, np.nan), where=other > 0)
    return difference(saved, np.zeros(len(one)))


def reached(both: list[tuple[Run, Run]], target: float) -> tuple[float, float]:
    """Share of the first and of the second runs that reach an accuracy within the tokens of :func:`by_tokens`, of the
    pairs that are not above it at once."""
    told = [_tokens_until(pair, target) for pair in both]
    one, other = np.array([there for costs, there in told if costs[1] > 0]).mean(0)
    return float(one), float(other)


def _tokens_until(pair: tuple[Run, Run], target: float) -> tuple[list[float], list[bool]]:
    """Teacher tokens of both until an accuracy, at most those that both have spent; and whether they had it by then."""
    both = [curves.curve(run, "teacher") for run in pair]
    horizon = min(x[-1] for x, _ in both)
    costs = [curves.cost_of(x, y, target) for x, y in both]
    return [min(cost, horizon) for cost in costs], [cost <= horizon for cost in costs]


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
    if p.measure == "gain":
        return _gains(p, runs)
    both = pairs_of(p, runs)
    if p.measure == "shrinking":
        return _shrinking(both, p.early)
    if p.measure == "tokens":
        return by_tokens(both, target(runs, p.regime))
    if p.measure == "second":
        return by_second(both)
    return by_final(both, p.axis) if p.measure == "final" else by_area(both, p.axis)


def pairs_of(prediction: Prediction, runs: Runs) -> list[tuple[Run, Run]]:
    """The runs that a prediction compares.

    Raises:
        ValueError: There is none.
    """
    p = prediction
    one, other = dict(p.where), dict(p.where) | dict(p.other)
    both = pairs(pick(runs, p.part, p.regime, p.arm, **one), pick(runs, p.part, p.regime, p.against, **other))
    if not both:
        raise ValueError(f"{p.name}: no run of {p.arm} and {p.against} in {p.part}, {p.regime}")
    return both


def _gains(p: Prediction, runs: Runs) -> Difference:
    """What the first has over uniform in its own world, less a share of what the second has over it in its."""

    def over_uniform(arm: str, **where: Any) -> Difference:
        return by_area(
            pairs(pick(runs, p.part, p.regime, arm, **where), pick(runs, p.part, p.regime, "uniform", **where)), p.axis
        )

    one, other = dict(p.where), dict(p.where) | dict(p.other)
    return difference(over_uniform(p.arm, **one).gaps, p.share * over_uniform(p.against, **other).gaps)


def _shrinking(both: list[tuple[Run, Run]], early: int) -> Difference:
    """The gap in accuracy at the end of the programme's steps less the gap after ``early`` ones."""
    found = []
    for pair in both:
        end = planned(pair, "step")
        late, soon = ([curves.value_at(*curves.curve(run, "step"), at) for run in pair] for at in (end, early))
        found.append((late[0] - late[1], soon[0] - soon[1]))
    return difference(*np.array(found).T)


def registered(runs: Runs) -> list[tuple[str, str, Difference, float]]:
    """The registered family: regime, arm, difference to uniform, and p adjusted by Holm's method."""
    found = [
        (regime, arm, by_area(pairs(pick(runs, "E1", regime, arm), pick(runs, "E1", regime, "uniform")), "step"))
        for regime, arm in FAMILY
    ]
    adjusted = holm([gap.p for _, _, gap in found])
    return [(*one, float(p)) for one, p in zip(found, adjusted, strict=True)]
