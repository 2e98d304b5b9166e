"""Shares of a sequence that are kept at every moment: the chairman assignment problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.protocol import IntArray

FloatArray = npt.NDArray[np.float64]


class Quotas:
    """Says whose turn it is, so that everybody's turns stay near the sum of his shares at every moment.

    Owed is the sum of a group's shares less its turns. With δ = 1/(2C−2), a turn goes to the group, of those owed δ or
    more, that would be the first to be owed more than 1 − δ if passed over (Tijdeman 1980, The chairman assignment
    problem); if one is that far already, to the one that is owed most.

    - Nobody is ever ahead by more than 1 − δ.
    - While the shares stay as they are, nobody is behind by more than 1 − δ: less than one turn, and no rule does
      better.
    - What is owed when shares change stays owed. Nobody is then behind by more than the largest of
      min(1, (C−k)/k) (1−δ) + 1/2 + 1/3 + … + 1/k over k ≤ C: .88 for C = 3, 1.34 for C = 4, 2.69 for C = 16. No rule
      can promise less than 1 for C ≥ 4: let the shares always be equal among those who had no turn yet, and the last
      of them is owed 1/C + … + 1/3 + 1/2 after C − 1 turns.

    A group that turns are closed to keeps what it is owed, or is ahead by. The bounds are those of groups that are all
    open: what closed ones keep comes on top.

    Attributes:
        shares: On the simplex, float64 (C,).
    """

    def __init__(self, groups: int) -> None:
        self._slack = 1 / (2 * max(groups, 2) - 2)
        self._base = np.zeros(groups)  # owed when the shares were set
        self._turns = [0] * groups  # since then, of each; and of all:
        self._count = 0
        self.shares = np.full(groups, 1 / groups)
        self.set(self.shares, np.ones(groups, bool))

    @property
    def owed(self) -> FloatArray:
        """Turns that each group is behind, (C,)."""
        return self._base + self._count * self.shares - self._turns

    def set(self, shares: FloatArray, open_to: npt.NDArray[np.bool_]) -> None:
        """Go on with these shares, (C,), and with turns for these groups only; a closed one must have share 0."""
        if self._count and not np.array_equal(shares, self.shares):
            self._base, self._count, self._turns = self.owed, 0, [0] * len(shares)
        self.shares, self._open = shares, open_to
        # Lists from here on: of so few groups they are quicker than arrays.
        self._every: list[float] = (1 / np.maximum(shares, 1e-18)).tolist()  # turns between two of a group's own
        self._offset: list[float] = (self._slack - self._base).tolist()
        self._from = [self._due(group) if is_open else math.inf for group, is_open in enumerate(open_to.tolist())]
        self._until = [self._due(group, 1 - 2 * self._slack) for group in range(len(shares))]

    def _due(self, group: int, more: float = 0.0) -> float:
        """After how many turns a group is owed δ, and so much more."""
        return (self._turns[group] + self._offset[group] + more) * self._every[group]

    def draw(self, n: int) -> IntArray:
        """Whose the next n turns are, int64 (n,); the same as n times ``draw(1)``."""
        return np.array([self._next() for _ in range(n)], np.int64)

    def _next(self) -> int:
        self._count += 1
        until, group = math.inf, -1
        for candidate, start in enumerate(self._from):
            if start <= self._count and self._until[candidate] < until:
                until, group = self._until[candidate], candidate
        if not self._count < until < math.inf:  # somebody is late, or nobody is owed enough
            group = int(np.where(self._open, self.owed, -np.inf).argmax())
        self._turns[group] += 1
        self._from[group], self._until[group] = self._due(group), self._due(group, 1 - 2 * self._slack)
        return group

    def state_dict(self) -> dict[str, Any]:
        """As JSON would hold it; which groups are open is not in it."""
        shares, base = self.shares.tolist(), self._base.tolist()
        return {"shares": shares, "base": base, "turns": list(self._turns), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._base, self._turns = np.array(state["base"]), list(state["turns"])
        self._count, self.shares = state["count"], np.array(state["shares"])
        self.set(self.shares, self._open)
