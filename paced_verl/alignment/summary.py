"""What a measurement says, in numbers: teachers, outcomes, depth, pass rate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.alignment.distil import descent_direction
from paced_verl.alignment.ideal import ideal_gradient, success
from paced_verl.alignment.nodes import on_support, stacked
from paced_verl.alignment.result import Aligned, Measured
from paced_verl.alignment.score import Interval, difference, interval, matched, mean, reliability, split
from paced_verl.alignment.targets import fifth_of, window_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SPREADS = 4
"""Strata of how far a direction reaches, beside depth and visits, where outcomes are compared."""


@dataclass(frozen=True)
class OfTeacher:
    """One teacher under one divergence.

    Attributes:
        teacher, divergence, support: Whose direction.
        aggregate: Cosine of all nodes together, without what noise takes away.
        naive: Mean of the nodes' cosines.
        positive: Share of nodes with a cosine above 0.
        advantage, natural: Slopes of success along the mixture, and along the natural gradient.
        reliability: Of the questions' mean dot products, by two halves of the visits.
        nodes, undefined: How many there are; at how many a gradient is 0.
    """

    teacher: str
    divergence: str
    support: str
    aggregate: Interval
    naive: Interval
    positive: Interval
    advantage: Interval
    natural: Interval
    reliability: float
    nodes: int
    undefined: int


def of_teacher(one: Aligned, found: Measured, teacher: FloatArray | None, rng: np.random.Generator) -> OfTeacher:
    """The numbers of a teacher.

    Args:
        one: Its scores.
        found: What they are of.
        teacher: (U, m) its log-probabilities at the measured nodes; ``None``: one that knows nothing, whose
            reliability nobody asks for.
        rng: Of the halves.
    """
    scores = one.scores

    def averaged(values: FloatArray) -> Interval:
        return mean(scores.question, values, scores.weight)

    return OfTeacher(
        one.teacher,
        one.divergence,
        one.support,
        interval(scores),
        averaged(one.cosine),
        averaged(np.where(np.isnan(one.cosine), np.nan, one.cosine > 0)),
        averaged(one.advantage),
        averaged(one.natural),
        float("nan") if teacher is None else _reliability(one, found, teacher, rng),
        len(one.rows),
        int(np.isnan(one.cosine).sum()),
    )


def _reliability(one: Aligned, found: Measured, teacher: FloatArray, rng: np.random.Generator) -> float:
    """Of the questions' mean dot products: visits are dealt into two halves, which share no rollout."""
    student, _ = stacked(found.nodes)
    p, q = on_support(student[one.rows], "kept"), on_support(teacher[one.rows], "kept")
    d = descent_direction(p, q, one.divergence)
    means = []
    for n, k in split(found.n[one.rows].astype(np.int64), found.k[one.rows], rng):
        rate, _variance = success(k, n)
        dot = np.sum(ideal_gradient(np.exp(p), rate) * d, axis=-1)
        known = ~np.isnan(dot)
        _, place = np.unique(one.scores.question, return_inverse=True)
        weight = np.where(known, one.scores.weight, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(np.bincount(place, weight * np.where(known, dot, 0.0)) / np.bincount(place, weight))
    return reliability(*means)


@dataclass(frozen=True)
class Outcomes:
    """Nodes of correct and of incorrect responses, of one teacher.

    Attributes:
        naive_correct, naive_wrong: Means of cosines, as the paper has them.
        correct, wrong: Aggregates without noise.
        gap: wrong − correct of the aggregates.
        matched_gap: The same, with as many nodes of each depth, number of visits and reach in both.
    """

    teacher: str
    divergence: str
    naive_correct: Interval
    naive_wrong: Interval
    correct: Interval
    wrong: Interval
    gap: Interval
    matched_gap: Interval


def outcomes(one: Aligned, found: Measured, correct: npt.NDArray[np.bool_]) -> Outcomes | None:
    """Does the teacher point better where the response has failed?

    Args:
        one: Scores from visits that leave a node's own response out: it has decided the group.
        found: What they are of.
        correct: (U,) of the measured nodes: whether the response was correct.

    Returns:
        ``None`` where there is only one kind.
    """
    right = correct[one.rows]
    if right.all() or not right.any():
        return None
    strata = _strata(one, found)
    parts = one.of(right), one.of(~right)
    factors = matched(strata[right], strata[~right])
    alike = [part.scores.weighted(factor) for part, factor in zip(parts, factors, strict=True)]
    correct_mean, wrong_mean = (mean(part.scores.question, part.cosine, part.scores.weight) for part in parts)
    return Outcomes(
        one.teacher,
        one.divergence,
        correct_mean,
        wrong_mean,
        interval(parts[0].scores),
        interval(parts[1].scores),
        difference(parts[1].scores, parts[0].scores),
        difference(alike[1], alike[0]),
    )


def _strata(one: Aligned, found: Measured) -> IntArray:
    """(U,) by depth window, by how often the node was visited, and by the length of the direction: nothing measured."""
    windows = window_of([found.nodes[row].position for row in one.rows])
    visits = np.log2(np.maximum(found.n[one.rows].sum(-1), 1)).astype(np.int64)
    edges = np.quantile(one.scores.dd, np.arange(1, SPREADS) / SPREADS)
    reach = np.searchsorted(edges, one.scores.dd)
    return np.unique(np.stack([windows, visits, reach]), axis=1, return_inverse=True)[1].reshape(-1)


def by_window(one: Aligned, found: Measured) -> dict[int, Interval]:
    """The aggregate by depth window."""
    windows = window_of([found.nodes[row].position for row in one.rows])
    return {int(w): interval(one.scores[windows == w]) for w in np.unique(windows)}


def by_pass_rate(one: Aligned, rates: Mapping[int, float]) -> dict[int, Interval]:
    """The aggregate by fifth of the question's pass rate.

    Args:
        one: A teacher's scores.
        rates: By question.
    """
    fifth = fifth_of([rates[int(question)] for question in one.scores.question])
    return {int(f): interval(one.scores[fifth == f]) for f in np.unique(fifth)}


def summarise(
    found: Measured,
    aligned: Sequence[Aligned],
    without: tuple[Measured, Sequence[Aligned]],
    names: Sequence[str],
    correct: npt.NDArray[np.bool_],
    rates: Mapping[int, float],
    seed: int,
) -> dict[str, Any]:
    """All numbers, as JSON has them.

    Args:
        found, aligned: What was measured, and its scores.
        without: The same from visits that leave a node's own response out.
        names: Of the teachers, in the nodes' order; the others know nothing.
        correct: (U,) of the nodes of ``without``: whether their response was.
        rates: The pass rate of each question.
        seed: Of the halves.

    Returns:
        ``teachers``, ``outcomes``, ``windows``, ``pass_rates`` (lists of rows), ``against``: differences between
        teachers under the same divergence, and ``p_holm`` in the rows of ``outcomes``, over all teachers and outcomes.
    """
    rng, everyone = np.random.default_rng(seed), dict(zip(names, stacked(found.nodes)[1], strict=True))
    teachers = [of_teacher(one, found, everyone.get(one.teacher), rng) for one in aligned]
    known = [one for one in aligned if one.teacher in everyone]
    both = [outcomes(one, without[0], correct) for one in without[1] if one.teacher in everyone]
    compared = [one for one in both if one is not None]
    adjusted = holm([part.p for one in compared for part in (one.correct, one.wrong)]).reshape(-1, 2)
    return {
        "teachers": [_plain(one) for one in teachers],
        "outcomes": [
            _plain(one) | {"p_holm": {"correct": float(p[0]), "wrong": float(p[1])}}
            for one, p in zip(compared, adjusted, strict=True)
        ],
        "windows": [_key(one) | {"window": w, **_plain(v)} for one in known for w, v in by_window(one, found).items()],
        "pass_rates": [
            _key(one) | {"fifth": f, **_plain(v)} for one in known for f, v in by_pass_rate(one, rates).items()
        ],
        "against": [
            {"first": first.teacher, "second": second.teacher, "divergence": first.divergence}
            | _plain(difference(first.scores, second.scores))
            for first, second in itertools.combinations(aligned, 2)
            if first.divergence == second.divergence
        ],
    }


def _key(one: Aligned) -> dict[str, str]:
    return {"teacher": one.teacher, "divergence": one.divergence, "support": one.support}


def _plain(one: Any) -> dict[str, Any]:
    """A dataclass as JSON has it, intervals with their ends."""
    if isinstance(one, Interval):
        return {"value": one.value, "low": one.low, "high": one.high, "questions": one.questions}
    parts = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return {name: _plain(part) if isinstance(part, Interval) else part for name, part in parts.items()}


def holm(p_values: Sequence[float]) -> FloatArray:
    """Adjusted so that one wrong rejection among all is as unlikely as each p says; NaN stays."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    known = order[~np.isnan(p[order])]
    found = np.full(len(p), np.nan)
    factors = np.arange(len(known), 0, -1)
    found[known] = np.minimum(1.0, np.maximum.accumulate(p[known] * factors))
    return found
