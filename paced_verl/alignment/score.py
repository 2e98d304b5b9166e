"""How far two directions agree: node by node, together without what noise takes away, and how sure that is.

A node's measured gradient ĝ is g plus noise, so that its cosine to any direction comes out too small: a truth of .59
looks like .48 at 20 visits a token, and nodes whose success is close to 0 or 1 suffer most. Averages of cosines of
"correct" and "incorrect" rollouts therefore differ even where the truth does not. The aggregate here,

    Σ ω ⟨ĝ, d⟩ / √( Σ ω (‖ĝ‖² − noise) · Σ ω ‖d‖² ),

takes sums first: its numerator and the two sums below are unbiased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ZERO = 1e-3
"""Length of a direction that counts as none: two servers give the same model's probabilities to about that."""


def cosine(g: FloatArray, d: FloatArray) -> FloatArray:
    """(U,) cosines of (U, m) and (U, m); NaN where one of them is 0, or ``d`` no longer than ``ZERO``."""
    lengths = np.linalg.norm(g, axis=-1), np.linalg.norm(d, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sum(g * d, axis=-1) / (lengths[0] * lengths[1])
    return np.asarray(np.where((lengths[0] > 0) & (lengths[1] > ZERO), found, np.nan))


def teacher_advantage(p: FloatArray, q: FloatArray, success: FloatArray) -> FloatArray:
    """(U,) Σ (q − p) Q: how fast success grows along the mixture p + ε (q − p). It knows no metric of logits."""
    return np.asarray(np.sum(np.where(p > 0, (q - p) * success, 0.0), axis=-1))


def natural_derivative(student: FloatArray, teacher: FloatArray, success: FloatArray) -> FloatArray:
    """(U,) Cov_p(Q, log q/p): how fast success grows along the natural-gradient step of reverse KL.

    Args:
        student, teacher: (U, m) log-probabilities.
        success: (U, m) Q.
    """
    p = np.exp(student)
    ratio = np.where(p > 0, teacher - np.where(p > 0, student, 0.0), 0.0)
    rates = np.where(p > 0, success, 0.0)
    centred = rates - np.sum(p * rates, axis=-1, keepdims=True)
    return np.asarray(np.sum(p * centred * ratio, axis=-1))


@dataclass(frozen=True)
class Scores:
    """What is needed of nodes and one teacher: what sums are made of.

    Attributes:
        question: int64 (U,): which question a node is of.
        dot: float64 (U,) ⟨ĝ, d⟩.
        gg: float64 (U,) ‖ĝ‖².
        noise: float64 (U,) expected ‖ĝ − g‖².
        dd: float64 (U,) ‖d‖².
        weight: float64 (U,) ω, such as the inverse of the inclusion probability.
    """

    question: IntArray
    dot: FloatArray
    gg: FloatArray
    noise: FloatArray
    dd: FloatArray
    weight: FloatArray

    def __getitem__(self, which: npt.ArrayLike) -> Scores:
        return Scores(*(getattr(self, name)[np.asarray(which)] for name in self.__dataclass_fields__))

    def weighted(self, factor: FloatArray) -> Scores:
        """The same nodes, weighing ``factor`` (U,) times as much."""
        return replace(self, weight=self.weight * factor)

    def sums(self) -> FloatArray:
        """(Q, 3): of each question Σ ω ⟨ĝ, d⟩, Σ ω (‖ĝ‖² − noise), Σ ω ‖d‖²."""
        _, place = np.unique(self.question, return_inverse=True)
        parts = (self.dot, self.gg - self.noise, self.dd)
        return np.stack([np.bincount(place, self.weight * part) for part in parts], axis=1)


def aggregate(scores: Scores) -> float:
    """The cosine of all nodes together, without what noise adds to the length of ĝ; NaN where nothing is left of it."""
    return float(_cosine_of(scores.sums().sum(axis=0)))


def _cosine_of(sums: FloatArray) -> FloatArray:
    """(…, 3) → (…,)."""
    dot, gg, dd = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where((gg > 0) & (dd > 0), dot / np.sqrt(gg * dd), np.nan))


@dataclass(frozen=True)
class Interval:
    """A number over questions, and how sure it is.

    Attributes:
        value: The number.
        error: Its standard error, by leaving out one question at a time; NaN for fewer than three.
        questions: How many.
    """

    value: float
    error: float
    questions: int

    @property
    def half_width(self) -> float:
        """Of the 95 % interval."""
        return float(stats.t.ppf(0.975, max(1, self.questions - 1))) * self.error

    @property
    def p(self) -> float:
        """Of the value being 0, two-sided."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(np.float64(self.value)) / np.float64(self.error)
        return float(2 * stats.t.sf(ratio, max(1, self.questions - 1)))

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        return self.value + self.half_width

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def interval(scores: Scores) -> Interval:
    """The aggregate with an interval over questions: those are independent, nodes of a question are not."""
    return _by_jackknife([scores.sums()], lambda totals: _cosine_of(totals[0]))


def mean(question: IntArray, values: FloatArray, weight: FloatArray) -> Interval:
    """The weighted mean of values of nodes, (U,), with an interval over questions; a NaN is left out."""
    known = ~np.isnan(values)
    _, place = np.unique(question[known], return_inverse=True)
    counts = weight[known]
    sums = np.stack([np.bincount(place, counts * values[known]), np.bincount(place, counts)], axis=1)
    return _by_jackknife([sums.astype(np.float64)], lambda totals: totals[0][..., 0] / totals[0][..., 1])


def difference(first: Scores, second: Scores) -> Interval:
    """Of two aggregates over the same questions; a question that only one has counts where it is."""
    questions = np.union1d(first.question, second.question)
    return _by_jackknife(
        [_spread(part, questions) for part in (first, second)],
        lambda totals: _cosine_of(totals[0]) - _cosine_of(totals[1]),
    )


def _spread(scores: Scores, questions: IntArray) -> FloatArray:
    found = np.zeros((len(questions), 3))
    found[np.searchsorted(questions, np.unique(scores.question))] = scores.sums()
    return found


def _by_jackknife(parts: Sequence[FloatArray], statistic: Callable[[list[FloatArray]], FloatArray]) -> Interval:
    """Leave out a question at a time: (Q, s) sums each, and what is made of their totals (…, s)."""
    n, totals = len(parts[0]), [part.sum(axis=0) for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(totals))
        if n < 3:
            return Interval(value, float("nan"), n)
        without = statistic([total - part for total, part in zip(totals, parts, strict=True)])
    return Interval(value, float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))), n)


def split(n: IntArray, k: FloatArray, rng: np.random.Generator) -> tuple[tuple[IntArray, FloatArray], ...]:
    """Two disjoint halves of the visits, (m,) n and k of 0/1 outcomes each, as if rollouts were dealt out at random."""
    half = n // 2
    hits = np.round(k).astype(np.int64)
    first = rng.hypergeometric(hits, n - hits, half).astype(np.float64)
    return (half, first), (n - half, k - first)


def reliability(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Of the mean of two halves, by Spearman & Brown from the correlation of values (n,) of disjoint rollouts.

    NaN for fewer than three values, or where one half does not vary.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    r = float(np.corrcoef(one, other)[0, 1])
    return 2 * r / (1 + r) if r > -1 else float("-inf")


def matched(first: IntArray, second: IntArray) -> tuple[FloatArray, FloatArray]:
    """Weights that give both groups of nodes the same composition of strata.

    Args:
        first, second: (U,) and (U′,) the stratum of each node: of its depth, its visits, its model-based spread; never
            of what was measured, since choosing by it chooses noise.

    Returns:
        (U,) and (U′,) factors: a stratum weighs as many nodes as the smaller group has of it, in both; 0 where one has
        none.
    """
    size = int(max(first.max(initial=-1), second.max(initial=-1))) + 1
    counts = [np.bincount(group, minlength=size) for group in (first, second)]
    common = np.minimum(*counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return tuple(  # type: ignore[return-value]
            np.where(count[group] > 0, common[group] / count[group], 0.0)
            for group, count in zip((first, second), counts, strict=True)
        )
