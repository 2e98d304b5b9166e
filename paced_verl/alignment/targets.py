"""What to measure: which positions of the rollouts, which tokens there, and how often each is forced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FIFTHS = 5
FIRST_WINDOW = 50
"""Positions of the first depth window; each one after it is twice as wide: 1–50, 51–150, 151–350, …"""


def window_of(positions: npt.ArrayLike) -> IntArray:
    """(…,) the depth window of positions that count from 0."""
    depth = np.asarray(positions, np.int64) // FIRST_WINDOW
    return np.asarray(np.floor(np.log2(depth + 1)), np.int64)


def fifth_of(rates: npt.ArrayLike) -> IntArray:
    """(…,) which fifth pass rates are in; 1 is in the last."""
    return np.minimum((np.asarray(rates, np.float64) * FIFTHS).astype(np.int64), FIFTHS - 1)


@dataclass(frozen=True)
class Chosen:
    """Positions of rollouts that are looked at.

    Attributes:
        rollout: int64 (U,): which rollout.
        position: int64 (U,): where in it.
        inclusion: float64 (U,): the probability with which this position was to be chosen. Means over all positions of
            the rollouts are means of the chosen ones, weighted by its inverse (Horvitz & Thompson).
    """

    rollout: IntArray
    position: IntArray
    inclusion: FloatArray

    def __len__(self) -> int:
        return len(self.rollout)


def choose_positions(lengths: Sequence[int], nodes: int, rng: np.random.Generator) -> Chosen:
    """So many positions, as many of each depth window as of another, uniformly inside a window.

    Long responses have most of their positions in the last windows; equal numbers keep the cost of a node from growing
    with the length of a response, and the inverse of the inclusion probability undoes the choice in every mean. A
    window with fewer positions than its share gives the rest to the others.

    Args:
        lengths: Tokens of each rollout.
        nodes: How many positions to choose; all of them if there are no more.
        rng: Of the choice.
    """
    rollout = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else np.zeros(0, np.int64)
    window = window_of(position)
    sizes = np.bincount(window)
    taken, inclusion = [], []
    for at, share in enumerate(shares(sizes, nodes, rng)):
        if share:
            taken.append(np.sort(rng.choice(np.flatnonzero(window == at), share, replace=False)))
            inclusion.append(np.full(share, share / sizes[at]))
    which = np.concatenate(taken) if taken else np.zeros(0, np.int64)
    return Chosen(rollout[which], position[which], np.concatenate(inclusion) if inclusion else np.zeros(0))


def shares(sizes: IntArray, total: int, rng: np.random.Generator) -> IntArray:
    """(W,) ``total`` in equal parts, none above its size; what cannot be divided is drawn."""
    found = np.zeros_like(sizes)
    total = min(total, int(sizes.sum()))
    while (left := total - int(found.sum())) > 0:
        open_ = np.flatnonzero(found < sizes)
        if left < len(open_):
            found[rng.choice(open_, left, replace=False)] += 1
        else:
            found[open_] += np.minimum(left // len(open_), sizes[open_] - found[open_])
    return found


def support(student: FloatArray, teachers: FloatArray, threshold: float = 0.02, most: int = 8) -> IntArray:
    """The tokens of a node that are worth a look: those that the student or a teacher says with some probability.

    Args:
        student: (V,) probabilities, of the vocabulary or of any candidates.
        teachers: (T, V) the teachers' of the same tokens.
        threshold: A token counts if somebody gives it more than that.
        most: The likeliest ones of these, by whoever gives them most.

    Returns:
        (m,) positions in ``student``, likeliest first; one token alone is no choice.
    """
    highest = np.maximum(student, teachers.max(axis=0)) if len(teachers) else student
    order = np.argsort(-highest, kind="stable")
    return order[: min(int(np.sum(highest > threshold)), most)]


def contrast(p: FloatArray, direction: FloatArray) -> FloatArray:
    """(…, m) c_j = p_j (d_j − Σ p d): ⟨g, d⟩ = Σ c_j Q_j, so an error of Q_j counts by c_j."""
    return np.asarray(p * (direction - np.sum(p * direction, axis=-1, keepdims=True)))


def allocate(contrasts: FloatArray, total: int, least: int = 0) -> IntArray:
    """How often each token is forced: in proportion to the root of Σ_T c², which needs to know no success.

    The variance of ⟨g, d⟩ is Σ c_j² Q_j (1 − Q_j) / n_j, so that these visits are the best ones where Q is unknown;
    with several teachers T they keep the sum of the variances small.

    Args:
        contrasts: (T, …, m): c of each teacher. A token that matters to none gets ``least``.
        total: Visits of all tokens together, at least ``least`` each.
        least: Of every token.

    Returns:
        int64 (…, m) whose sum is ``total``, or as many as ``least`` asks for if that is more.
    """
    size = np.sqrt(np.sum(contrasts**2, axis=0))
    spare = max(0, total - least * size.size)
    share = spare * size / size.sum() if size.sum() > 0 else np.full(size.shape, spare / size.size)
    found = np.floor(share).astype(np.int64)
    rest = np.argsort(-(share - found), axis=None, kind="stable")[: spare - int(found.sum())]
    found.flat[rest] += 1
    return found + least
