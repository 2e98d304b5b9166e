"""How often each token is to be forced, and which of it is still to be done: decisions without servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paced_verl.alignment.nodes import Node, contrasts
from paced_verl.alignment.targets import allocate
from paced_verl.alignment.tree import Tree

IntArray = npt.NDArray[np.int64]
ROUNDS = 8
"""Every node gets an eighth of its visits before any gets the next one: what stops early is balanced."""
LEAST = 8
"""Visits of a token, however little it matters: with fewer its noise would not be known."""


@dataclass(frozen=True)
class Wanted:
    """Continuations that begin with these tokens, of which the last is forced.

    Attributes:
        question: Whose.
        begun: The tokens.
        visits: How many there shall be, those that have come by themselves included.
    """

    question: int
    begun: tuple[int, ...]
    visits: int


def plan(
    nodes: Sequence[Node], carriers: Mapping[int, Sequence[tuple[int, ...]]], divergences: Sequence[str], visits: int
) -> list[Wanted]:
    """How often each token of each node is to be visited: ``visits`` a token on average over a question, more where an
    error of its success would move a score most.

    Args:
        nodes: Of all questions.
        carriers: The free responses of each question.
        divergences: Of the scores.
        visits: On average.
    """
    found: dict[tuple[int, tuple[int, ...]], int] = {}
    for question in sorted({node.question for node in nodes}):
        own = [node for node in nodes if node.question == question and len(node.tokens) > 1]
        if not own:
            continue
        sizes = [len(node.tokens) for node in own]
        there = np.arange(max(sizes))[None] < np.array(sizes)[:, None]
        counts = allocate(contrasts(own, divergences)[:, there], visits * sum(sizes), min(LEAST, visits))
        for node, own_counts in zip(own, np.split(counts, np.cumsum(sizes)[:-1]), strict=True):
            before = carriers[question][node.carrier][: node.position]
            for token, count in zip(node.tokens.tolist(), own_counts.tolist(), strict=True):
                place = question, (*before, token)  # a prefix that two responses share is one node
                found[place] = max(found.get(place, 0), count)
    return [Wanted(question, begun, count) for (question, begun), count in found.items()]


def missing(wanted: Sequence[Wanted], trees: Mapping[int, Tree], ends: frozenset[int], round_: int) -> list[Wanted]:
    """What a round, from 1 to ``ROUNDS``, still has to force.

    A response that has ended needs no continuation: judged once, its success is known.
    """
    found = []
    for one in wanted:
        target = -(-one.visits * round_ // ROUNDS)
        if one.begun[-1] in ends:
            target = 1
        (seen,), _ = trees[one.question].visits(one.begun[:-1]).of([one.begun[-1]])
        if target > seen:
            found.append(Wanted(one.question, one.begun, target - int(seen)))
    return found
