"""From rollouts and nodes to scores: success, gradients, and how each teacher lies to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paced_verl.alignment.distil import NULLS, descent_direction
from paced_verl.alignment.ideal import ideal_gradient, noise_trace, success
from paced_verl.alignment.nodes import Node, on_support, stacked
from paced_verl.alignment.score import Scores, cosine, natural_derivative, teacher_advantage
from paced_verl.alignment.tree import Rollout, Tree

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
SHUFFLE = "shuffle"


@dataclass(frozen=True)
class Measured:
    """What was measured at nodes; arrays (U, m), places without a token hold 0 visits.

    Attributes:
        nodes: Those that are left.
        n, k: Visits and successes.
        rate, variance: Success and the variance of it.
        dropped: Nodes that are left out, by reason.
    """

    nodes: list[Node]
    n: FloatArray
    k: FloatArray
    rate: FloatArray
    variance: FloatArray
    dropped: dict[str, int]


def measured(
    nodes: Sequence[Node],
    trees: Mapping[int, Tree],
    carriers: Mapping[int, Sequence[Rollout]],
    ends: frozenset[int],
    own: bool = True,
) -> Measured:
    """The success of every token.

    Nodes are left out by what is known without it: fewer than two tokens, or one that was visited less than twice.

    Args:
        nodes: To look at.
        trees: By question.
        carriers: The free responses of each question, which nodes are of.
        ends: Tokens that end a response: what comes of one is known after one visit.
        own: Whether a node's own response counts. It must not where nodes are sorted by its outcome.
    """
    kept, counts, dropped = [], [], {"one token": 0, "too few visits": 0}
    for node in nodes:
        carrier = carriers[node.question][node.carrier]
        tree = trees[node.question]
        n, k = tree.visits(carrier.tokens[: node.position], None if own else carrier).of(node.tokens)
        ended = np.isin(node.tokens, list(ends))
        if len(node.tokens) < 2:
            dropped["one token"] += 1
        elif (n < np.where(ended, 1, 2)).any():
            dropped["too few visits"] += 1
        else:
            kept.append(node)
            counts.append((n, k, ended))
    width = max((len(node.tokens) for node in kept), default=0)

    def wide(values: npt.NDArray[np.generic]) -> FloatArray:
        return np.pad(values.astype(np.float64), (0, width - len(values)))

    visits, successes, over = (
        np.stack([wide(count[i]) for count in counts]) if counts else np.zeros((0, width)) for i in range(3)
    )
    rate, variance = success(successes, visits)
    return Measured(kept, visits, successes, rate, np.where(over > 0, 0.0, variance), dropped)


@dataclass(frozen=True)
class Aligned:
    """How one teacher lies to the ideal gradients.

    Attributes:
        teacher, divergence, support: Whose direction.
        rows: int64 (U′,) which of the measured nodes it was asked at.
        cosine: (U′,) NaN where a gradient is 0.
        advantage, natural: (U′,) slopes of success along the mixture, and along the natural gradient of reverse KL.
        scores: What aggregates and intervals are made of.
    """

    teacher: str
    divergence: str
    support: str
    rows: npt.NDArray[np.int64]
    cosine: FloatArray
    advantage: FloatArray
    natural: FloatArray
    scores: Scores

    def of(self, which: BoolArray) -> Aligned:
        """Only some of its nodes, (U′,)."""
        parts = {name: getattr(self, name)[which] for name in ("rows", "cosine", "advantage", "natural", "scores")}
        return Aligned(self.teacher, self.divergence, self.support, **parts)


def align(
    found: Measured, names: Sequence[str], divergences: Sequence[str], nulls: Sequence[str], support: str
) -> list[Aligned]:
    """Every teacher under every divergence, those that know nothing behind the others.

    Args:
        found: What was measured.
        names: Of the nodes' teachers.
        divergences: Registered ones.
        nulls: Names of :data:`~paced_verl.alignment.distil.NULLS`, or ``shuffle``: the first teacher at another node of
            as many tokens and another question.
        support: ``kept`` or ``full``.
    """
    if not found.nodes:
        return []
    student, teachers = stacked(found.nodes)
    everyone = dict(zip(names, teachers, strict=True))
    for null in nulls:
        everyone[null] = (
            _shuffled(found.nodes, teachers[0]) if null == SHUFFLE else NULLS[null](on_support(student, "kept"))
        )
    result = []
    for name, teacher in everyone.items():
        rows = np.flatnonzero(~np.isnan(teacher).any(-1))
        for divergence in divergences:
            if len(rows):
                # What knows nothing has no tail of its own: it has the student's.
                whole = name in NULLS and support == "full"
                given = _with_mass(teacher[rows], student[rows]) if whole else teacher[rows]
                result.append(_one(found, name, divergence, support, rows, student[rows], given))
    return result


def _one(
    found: Measured, name: str, divergence: str, support: str, rows: npt.NDArray[np.int64], student: FloatArray,
    teacher: FloatArray,
) -> Aligned:  # fmt: skip
    p, q = on_support(student, support), on_support(teacher, support)
    kept = np.exp(on_support(student, "kept"))
    rate = found.rate[rows]
    g, noise = ideal_gradient(kept, rate), noise_trace(kept, found.variance[rows])
    if support == "full":
        # All other tokens have the node's own success: no gradient there, and the others' shrinks by what they lack.
        mass = 1 - np.exp(p[:, -1])
        g, noise = np.pad(g * mass[:, None], ((0, 0), (0, 1))), noise * mass**2
        own = np.sum(np.where(kept > 0, kept * rate, 0.0), -1, keepdims=True)
        rate = np.concatenate([rate, own], axis=-1)
    d = descent_direction(p, q, divergence)
    return Aligned(
        name,
        divergence,
        support,
        rows,
        cosine(g, d),
        teacher_advantage(np.exp(p), np.exp(q), rate),
        natural_derivative(p, q, rate),
        Scores(
            np.array([found.nodes[row].question for row in rows]),
            np.sum(g * d, axis=-1),
            np.sum(g**2, axis=-1),
            noise,
            np.sum(d**2, axis=-1),
            np.array([1 / found.nodes[row].inclusion for row in rows]),
        ),
    )


def _with_mass(null: FloatArray, student: FloatArray) -> FloatArray:
    """A teacher that is known on the kept tokens alone, with the student's mass there."""
    mass = np.log(np.exp(student).sum(-1, keepdims=True))
    return np.asarray(null + np.minimum(mass, 0.0))


def _shuffled(nodes: Sequence[Node], teacher: FloatArray) -> FloatArray:
    """Each node gets what the teacher said at the next node of another question with as many tokens, in the order of
    the student's probabilities; NaN where there is none."""
    found = np.full(teacher.shape, np.nan)
    for i, node in enumerate(nodes):
        m = len(node.tokens)
        for step in range(1, len(nodes)):
            other = nodes[(i + step) % len(nodes)]
            source = teacher[(i + step) % len(nodes)]
            if other.question != node.question and len(other.tokens) == m and not np.isnan(source).any():
                to, by = np.argsort(-node.student, kind="stable"), np.argsort(-other.student, kind="stable")
                found[i] = -np.inf
                found[i, to] = source[by]
                break
    return found
