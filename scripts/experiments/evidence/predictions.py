"""What was expected before any run with seeds of 100 and more, and what came out.

Written down after pilots of 3 or 4 seeds, which are other ones; intervals are not changed afterwards. Where there were
words only, arms and measures were settled when results were known: :attr:`Prediction.in_words`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scripts.experiments.evidence.cells import dose_of, named
from scripts.experiments.evidence.stats import Difference

Interval = tuple[float, float]
ANY = math.inf
R0, R1, R2, R3, R4, R5 = (
    "R0 balanced",
    "R1 mastered",
    "R2 hopeless, wrong teacher",
    "R3 hopeless, right teacher",
    "R4 wrong labels",
    "R5 holes",
)
BOTTLENECK = "estimates cost that much, or the posterior does: see below"
R7_WRONG, R7_RIGHT = "R7 second skill, wrong teacher", "R7 second skill, right teacher"


HALF_WRONG, HALF_RIGHT = (named(dose_of(0.6, right)) for right in (0.0, 1.0))
"""Of the regimes that were swept, those with about half of the prompts hopeless."""


@dataclass(frozen=True)
class Prediction:
    """A contrast of two arms in a regime.

    Attributes:
        name: Short, once.
        part, regime, arm, against: What is compared, in a part of the programme.
        where: Columns of both that differ from :data:`~scripts.experiments.evidence.contrasts.PLAIN`.
        other: Columns of the second one alone.
        measure: ``area`` over the log of ``axis``; ``final`` accuracy at the end of the shorter run; ``tokens``: saved
            teacher tokens until the calibration's midpoint, as a share; ``second``: the second skill at equal new
            accuracy; ``gain``: the area over uniform's, of both, and the difference of the two; ``shrinking``: the gap
            in accuracy at the end less that after ``early`` steps.
        expected: Interval of the mean of the differences.
        axis: At equal what: one of :data:`~scripts.experiments.evidence.curves.AXES`.
        if_below, if_above: What follows where it is wrong on that side.
        share: Of the second gain.
        early: Steps.
        in_words: What was written down has no figures.
    """

    name: str
    part: str
    regime: str
    arm: str
    against: str
    expected: Interval
    measure: str = "area"
    axis: str = "step"
    where: tuple[tuple[str, Any], ...] = ()
    other: tuple[tuple[str, Any], ...] = ()
    if_below: str = ""
    if_above: str = ""
    share: float = 1.0
    early: int = 40
    in_words: bool = False


def _uniform(name: str, regime: str, arm: str, expected: Interval, part: str = "E1", **other: Any) -> Prediction:
    return Prediction(name, part, regime, arm, "uniform", expected, **other)


PREDICTIONS = (
    _uniform("R0 weights", R0, "weights", (-0.02, 0.0)),
    _uniform("R0 sampler", R0, "sampler", (-0.01, 0.005)),
    _uniform("R0 placebo", R0, "placebo", (-0.03, -0.01), if_above="noise in weights costs nothing at this batch"),
    _uniform("R1 accuracy", R1, "sampler", (-0.01, 0.01), if_below="mastered prompts carry signal"),
    _uniform("R1 tokens", R1, "sampler", (0.4, 0.65), measure="tokens", if_below="mastered prompts carry signal"),
    _uniform("R2 sampler", R2, "sampler", (0.05, 0.12), if_below="coherence, not reliability, is the mechanism"),
    _uniform("R2 posterior", R2, "posterior sampler", (0.02, 0.07)),
    Prediction("R2 teacher correct", "E1", R2, "teacher correct", "sampler", (0.0, ANY)),
    _uniform("R2 reverse", R2, "teacher gate, sampler", (0.03, ANY), part="E5", where=(("stages", "reverse"),)),
    Prediction(
        "R2 by the teacher, fall",
        "E2",
        R3,
        "sampler",
        "sampler",
        (0.0, ANY),
        measure="gain",
        where=(("changes", HALF_WRONG),),
        other=(("changes", HALF_RIGHT),),
        if_below="the gain does not depend on the teacher",
        in_words=True,
    ),
    _uniform(
        "R2 by the teacher, sign",
        R3,
        "sampler",
        (-ANY, 0.0),
        part="E2",
        where=(("changes", HALF_RIGHT),),
        if_above="no change of sign: right answers out of reach do harm as well",
        in_words=True,
    ),
    _uniform("R3 sampler", R3, "sampler", (0.08, 0.12), if_below="what is out of reach is learnt at once"),
    _uniform(
        "R3 long run",
        R3,
        "sampler",
        (0.0, 0.08),
        part="E3",
        measure="final",
        where=(("changes", "prompts=512"),),
        if_below="w = 0 at p = 0 does harm",
    ),
    _uniform(
        "R3, shrinking with the budget",
        R3,
        "sampler",
        (-ANY, 0.0),
        part="E3",
        measure="shrinking",
        where=(("changes", "prompts=512"),),
        in_words=True,
    ),
    Prediction(
        "R3 long run, estimated again",
        "E3",
        R3,
        "sampler",
        "uniform",
        (0.0, ANY),
        measure="final",
        where=(("refresh", "every"),),
        other=(("refresh", None), ("changes", "prompts=512")),
        if_below="the frontier does not move on",
    ),
    _uniform("R4 sampler", R4, "sampler", (-0.06, -0.02)),
    _uniform("R4 teacher correct", R4, "teacher correct", (-ANY, 0.0)),
    _uniform("R5 sampler", R5, "sampler", (0.08, 0.15)),
    Prediction("R5 teacher correct", "E1", R5, "teacher correct", "sampler", (0.0, ANY)),
    _uniform("R6 equal price", "R6 below an epoch", "sampler", (-ANY, 0.0), axis="price 1:1:3"),
    *(
        Prediction(
            f"free estimates in {regime[:2]}",
            "E4",
            regime,
            "free estimates",
            "sampler",
            (0.0, ANY),
            measure="gain",
            where=(("stages", "reverse"),),
            share=0.7,
            if_below="they do not keep 70 % of the gain",
            in_words=True,
        )
        for regime in (R2, R3)
    ),
    _uniform("R7 right", R7_RIGHT, "sampler", (-0.02, 0.02), measure="second"),
    _uniform("R7 wrong", R7_WRONG, "sampler", (0.05, ANY), measure="second"),
    Prediction(
        "order in R3",
        "E5",
        R3,
        "sampler",
        "sampler",
        (0.02, ANY),
        measure="final",
        where=(("stages", "two stages"),),
        other=(("stages", "two stages, reversed"),),
    ),
    Prediction(
        "order in R0",
        "E5",
        R0,
        "sampler",
        "sampler",
        (-0.02, 0.02),
        measure="final",
        where=(("stages", "two stages"),),
        other=(("stages", "two stages, reversed"),),
    ),
    Prediction("root in R0", "E1", R0, "root", "weights", (0.0, ANY)),
    Prediction("root in R2", "E1", R2, "root", "weights", (-ANY, 0.0)),
    Prediction("root in R3", "E1", R3, "root", "weights", (-ANY, 0.0)),
    Prediction(
        "(1, 2) in R1",
        "E1",
        R1,
        "(1, 2)",
        "weights",
        (0.0, ANY),
        if_below="but held-out problems are no harder there than training's, as the programme has it",
        in_words=True,
    ),
    Prediction("oracle in R2", "E1", R2, "oracle", "posterior sampler", (-0.01, 0.01), if_above=BOTTLENECK),
    Prediction("oracle in R3", "E1", R3, "oracle", "posterior sampler", (-0.01, 0.01), if_above=BOTTLENECK),
)
FAMILY = tuple(
    (regime, arm)
    for regime in (R0, R1, R2, R3, R4, R5, R7_WRONG, R7_RIGHT)
    for arm in ("sampler", "posterior sampler", "teacher correct")
)
"""Contrasts to uniform in E1, area at equal steps, whose p-values are adjusted together; others are described."""


def outcome(expected: Interval, found: Difference) -> str:
    """By the 95 % interval: ``as expected`` inside the expected one, ``wrong`` outside, ``unclear`` across; ``not to be
    judged`` where less than half of the pairs could be read."""
    low, high = found.t_interval
    if found.left_out > len(found.gaps):
        return "not to be judged"
    if math.isnan(low):
        return "unclear"
    if expected[0] <= low and high <= expected[1]:
        return "as expected"
    if high < expected[0]:
        return "wrong, below"
    if low > expected[1]:
        return "wrong, above"
    return "unclear, mean as expected" if expected[0] <= found.mean <= expected[1] else "unclear"


def follows(prediction: Prediction, came: str) -> str:
    """What follows of an outcome, where something was said of that side."""
    return {"wrong, below": prediction.if_below, "wrong, above": prediction.if_above}.get(came, "")
