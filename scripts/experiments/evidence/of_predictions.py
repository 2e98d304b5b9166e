"""The page's block on what had been registered."""

from __future__ import annotations

import math
from typing import Any

from scripts.experiments.evidence import curves, predictions
from scripts.experiments.evidence.contrasts import Runs, by_area, of, pairs, pairs_of, pick, reached, target
from scripts.experiments.evidence.predictions import PREDICTIONS, R3, outcome
from scripts.experiments.evidence.shown import of_pairs, priced, shown
from scripts.experiments.evidence.stats import Difference
from scripts.experiments.page import lines, wrapped


def block(runs: Runs) -> str:
    table = []
    for p in PREDICTIONS:
        found = of(p, runs)
        low, high = p.expected
        expected = (
            f"below {high:g}" if math.isinf(low) else f"above {low:g}" if math.isinf(high) else f"{low:+g} to {high:+g}"
        )
        came = outcome(p.expected, found)
        second = p.against if p.share == 1 else f"{p.share:g} of {p.against}"
        compared = f"{p.arm} − {second}" if p.arm != p.against else f"{p.arm}: {_way(p.where)} − {_way(p.other)}"
        where = "" if p.arm == p.against else _way(p.where)
        follows = predictions.follows(p, came)
        table.append(
            [
                f"{p.name} †" if p.in_words else p.name,
                compared + (f" ({where})" if where else ""),
                MEASURES[p.measure] + ("" if p.axis == "step" else f", {p.axis}"),
                expected,
                _found(p, found, runs),
                came + (f": {follows}" if follows else ""),
            ]
        )
    told = lines(["prediction", "compared", "measure", "expected", "found", "outcome"], table)
    return f"{told}\n\n{_oracle(runs)}"


def _found(p: predictions.Prediction, found: Difference, runs: Runs) -> str:
    """With how many seeds it is of, where these are not all, and how many runs reached the accuracy in question."""
    if p.axis in curves.PRICES:
        return priced(found)
    said = of_pairs(found) if found.left_out else shown(found)
    if p.measure == "tokens":
        one, other = reached(pairs_of(p, runs), target(runs, p.regime))
        said += f"; a* reached by {one:.0%} and {other:.0%}"
    return said


def _oracle(runs: Runs) -> str:
    """What the oracle has over the sampler with the same kernel, which the predictions did not ask."""
    gaps = [
        shown(by_area(pairs(pick(runs, "E1", regime, "oracle"), pick(runs, "E1", regime, "sampler")), "step"))
        for regime in (predictions.R2, R3)
    ]
    return wrapped(
        f"The oracle has the sampler's kernel, and not the posterior. From the sampler with K = 8 it differs by "
        f"{gaps[0]} in R2 and {gaps[1]} in R3: at K = 8 better estimates are worth no more than that, and what the "
        "oracle has over the posterior sampler is the posterior's own."
    )


MEASURES = {
    "area": "area",
    "final": "final accuracy",
    "tokens": "teacher tokens saved",
    "second": "second skill at equal new accuracy",
    "gain": "area over uniform's",
    "shrinking": "gap in accuracy, step 320 − step 40",
}


def _way(where: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(SAID.get(value, str(value)) for _, value in where)


SAID = {predictions.HALF_WRONG: "60 % hopeless, teacher wrong", predictions.HALF_RIGHT: "60 % hopeless, teacher right"}
"""Worlds in words."""
