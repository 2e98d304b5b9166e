"""The rollouts of a question, and which of them are a fair sample at a node."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FREE = -1
"""``forced`` of a rollout that the student wrote from its first token on."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rollout:
    """A response and how it ended.

    Attributes:
        tokens: Of the response; the end-of-sequence token, where it was said, is one of them.
        forced: Position of the token that was forced, ``FREE`` for none. What is before it was copied from another
            rollout; what is after it is the student's own.
        success: 1 for a correct answer, 0 for another; shares between are allowed.
    """

    tokens: tuple[int, ...]
    forced: int
    success: float


@dataclass(frozen=True)
class Visits:
    """What was seen at a node, child by child.

    Attributes:
        tokens: int64 (m,), increasing.
        n: int64 (m,): rollouts that are a fair sample of what follows the token.
        k: float64 (m,): the sum of their successes.
    """

    tokens: IntArray
    n: IntArray
    k: FloatArray

    def of(self, tokens: npt.ArrayLike) -> tuple[IntArray, FloatArray]:
        """n and k of these tokens, (m′,) each; 0 of a token that was never seen."""
        wanted = np.asarray(tokens, np.int64)
        if not len(self.tokens):
            return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape)
        place = np.minimum(np.searchsorted(self.tokens, wanted), len(self.tokens) - 1)
        seen = self.tokens[place] == wanted
        return np.where(seen, self.n[place], 0), np.where(seen, self.k[place], 0.0)


class Tree:
    """All rollouts of a question, merged on the prefixes that they share.

    A rollout says something of what follows token k at prefix u only if nothing after that token was forced: then what
    it did there is what the student does. Counting the others, too, mixes in what somebody else has chosen: a rollout
    that was forced onto the right track further down is no evidence for how often the student finds it.
    """

    def __init__(self, rollouts: Iterable[Rollout] = ()):
        # Big-endian, so that bytes are ordered as the tokens are: rollouts of a prefix lie side by side.
        self._keys: list[bytes] = []
        self._rollouts: list[Rollout] = []
        self.add(rollouts)

    def __len__(self) -> int:
        return len(self._rollouts)

    def add(self, rollouts: Iterable[Rollout]) -> None:
        """Put more rollouts into the tree.

        Raises:
            ValueError: A forced position lies outside the response.
        """
        every = [*self._rollouts, *rollouts]
        for rollout in every[len(self) :]:
            if not FREE <= rollout.forced < len(rollout.tokens):
                raise ValueError(f"forced: expected {FREE} to {len(rollout.tokens) - 1}, got {rollout.forced}")
        pairs = sorted(((_key(rollout.tokens), rollout) for rollout in every), key=lambda pair: pair[0])
        self._keys = [key for key, _ in pairs]
        self._rollouts = [rollout for _, rollout in pairs]

    def through(self, prefix: Sequence[int]) -> list[Rollout]:
        """The rollouts that begin with these tokens."""
        key = _key(prefix)
        return self._rollouts[bisect_left(self._keys, key) : bisect_left(self._keys, key + b"\xff" * 5)]

    def visits(self, prefix: Sequence[int], without: Rollout | None = None) -> Visits:
        """What is known of the children of a node.

        Args:
            prefix: The node.
            without: A rollout that is not to count, once: what is said of a rollout's own nodes by its own outcome is
                no independent evidence.
        """
        depth = len(prefix)
        children: dict[int, tuple[int, float]] = {}
        left_out = without is None
        for rollout in self.through(prefix):
            if len(rollout.tokens) <= depth or rollout.forced > depth:
                continue
            if not left_out and rollout == without:
                left_out = True
                continue
            n, k = children.get(rollout.tokens[depth], (0, 0.0))
            children[rollout.tokens[depth]] = (n + 1, k + rollout.success)
        tokens = sorted(children)
        return Visits(
            np.array(tokens, np.int64),
            np.array([children[token][0] for token in tokens], np.int64),
            np.array([children[token][1] for token in tokens], np.float64),
        )


def _key(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, ">u4").tobytes()
