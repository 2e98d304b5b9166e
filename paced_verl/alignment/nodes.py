"""From what servers say of a position to a node: its tokens, and what the student and every teacher give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from paced_verl.alignment.distil import descent_direction
from paced_verl.alignment.targets import contrast, support
from paced_verl.divergence.functions import entropy, forward_kl, reverse_kl, teacher_categories

FEATURES = ("student_entropy", "forward_kl", "reverse_kl", "tail_mass", "student_tail_mass")
"""What the loss knows of every token, as :func:`~paced_verl.divergence.selection.register_token_weight` names it."""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TopOf:
    """What a server says of one position: its likeliest tokens.

    Attributes:
        ids: int64 (k,).
        log_probs: float64 (k,) of the whole vocabulary.
    """

    ids: IntArray
    log_probs: FloatArray

    def of(self, tokens: IntArray, vocabulary: int) -> FloatArray:
        """Log-probabilities of any tokens. Those that the server did not say share what is left evenly: it cannot be
        more than that by much, since each of them is less likely than all that were said."""
        known = dict(zip(self.ids.tolist(), self.log_probs.tolist(), strict=True))
        left = max(1 - math.fsum(map(math.exp, known.values())), 1e-12)
        rest = math.log(left / max(1, vocabulary - len(known)))
        least = min(known.values(), default=0.0)
        return np.array([known.get(token, min(rest, least)) for token in tokens.tolist()])


@dataclass(frozen=True)
class Node:
    """A position of a free response.

    Attributes:
        question, carrier: Which response of which question.
        position: Of the token that is chosen there, from 0.
        inclusion: Probability with which the position was to be chosen.
        tokens: int64 (m,) that are worth a look.
        student: float64 (m,) the student's log-probabilities, of the whole vocabulary.
        teachers: float64 (T, m) the teachers'; NaN where one could not be asked.
        known: float64 (T, 5) what a training step would know there: ``FEATURES``; NaN likewise.
        unasked: (T,) why each teacher could not be asked; empty where it was.
    """

    question: int
    carrier: int
    position: int
    inclusion: float
    tokens: IntArray
    student: FloatArray
    teachers: FloatArray
    known: FloatArray
    unasked: tuple[str, ...] = ()


def node(
    place: tuple[int, int, int, float],
    student: TopOf,
    teachers: Sequence[TopOf | None],
    vocabulary: int,
    threshold: float,
    most: int,
) -> Node:
    """A node of what the servers said.

    Args:
        place: Question, carrier, position, inclusion.
        student: What the student says there.
        teachers: What each teacher says; ``None``: it could not be asked.
        vocabulary: Tokens there are.
        threshold, most: See :func:`~paced_verl.alignment.targets.support`.
    """
    asked = [teacher for teacher in teachers if teacher is not None]
    candidates = np.unique(np.concatenate([student.ids, *(teacher.ids for teacher in asked)]))
    every = np.stack([one.of(candidates, vocabulary) for one in (student, *asked)])
    kept = candidates[support(np.exp(every[0]), np.exp(every[1:]), threshold, most)]
    nothing = np.full(len(kept), np.nan)
    return Node(
        *place,
        tokens=kept,
        student=student.of(kept, vocabulary),
        teachers=np.array([nothing if t is None else t.of(kept, vocabulary) for t in teachers]).reshape(-1, len(kept)),
        known=np.array([known_of(student, t, vocabulary) for t in teachers]).reshape(-1, len(FEATURES)),
    )


def known_of(student: TopOf, teacher: TopOf | None, vocabulary: int) -> FloatArray:
    """(5,) ``FEATURES`` of a position, over the teacher's top-k and the tail as in a training step; NaN without one."""
    if teacher is None:
        return np.full(len(FEATURES), np.nan)
    theirs = teacher_categories(torch.from_numpy(teacher.log_probs)[None], vocabulary)
    own = torch.from_numpy(student.of(teacher.ids, vocabulary))[None]
    ours = teacher_categories(own, vocabulary)
    values = (entropy(ours), forward_kl(ours, theirs), reverse_kl(ours, theirs), theirs[:, -1].exp(), ours[:, -1].exp())
    return np.array([float(value) for value in values])


def stacked(nodes: Sequence[Node]) -> tuple[FloatArray, FloatArray]:
    """(U, m) the student's and (T, U, m) the teachers' log-probabilities, −inf where a node has no more tokens."""
    width = max(len(one.tokens) for one in nodes)

    def wide(values: FloatArray) -> FloatArray:
        space = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
        return np.pad(values, space, constant_values=-np.inf)

    return np.stack([wide(one.student) for one in nodes]), np.stack([wide(one.teachers) for one in nodes], axis=1)


def on_support(log_probs: FloatArray, support: str) -> FloatArray:
    """(…, m) of the whole vocabulary → what a divergence is taken of.

    Args:
        log_probs: −inf where there is no token.
        support: ``kept``: (…, m) that sum to 1. ``full``: (…, m + 1), all other tokens as the last one.
    """
    if support == "full":
        tail = np.log(np.maximum(1 - np.exp(log_probs).sum(-1, keepdims=True), 1e-12))
        log_probs = np.concatenate([log_probs, tail], axis=-1)
    return np.asarray(log_softmax(log_probs, axis=-1))


def contrasts(nodes: Sequence[Node], divergences: Sequence[str]) -> FloatArray:
    """(T · D, U, m): how much an error of a token's success matters, for each teacher and divergence; 0 where a teacher
    was not asked."""
    student, teachers = stacked(nodes)
    student = on_support(student, "kept")
    found = []
    for teacher in teachers:
        known = ~np.isnan(teacher).any(-1)
        for divergence in divergences:
            one = np.zeros(student.shape)
            if known.any():
                direction = descent_direction(student[known], on_support(teacher[known], "kept"), divergence)
                one[known] = contrast(np.exp(student[known]), direction)
            found.append(one)
    return np.stack(found)
