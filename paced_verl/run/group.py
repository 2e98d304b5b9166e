"""The responses to one prompt in one step, as they are scored: what the teacher is asked can depend on all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scored:
    """A scored response.

    Attributes:
        correct: Whether it is correct.
        text: The response, decoded.
        metric: What DAPO's group filter compares, where it is on.
    """

    correct: bool
    text: str
    metric: float = 0.0


class Group:
    """Waits until every session of a prompt has been scored or has failed.

    Args:
        size: Number of sessions.
    """

    def __init__(self, size: int):
        self.size = size
        self._settled: dict[int, Scored | None] = {}
        self._complete = asyncio.Event()

    def settle(self, session: int, scored: Scored | None) -> None:
        """Enter a session's response, or ``None`` where it failed. The first entry of a session counts."""
        self._settled.setdefault(session, scored)
        if len(self._settled) == self.size:
            self._complete.set()

    @property
    def complete(self) -> bool:
        """Whether all sessions have settled."""
        return self._complete.is_set()

    async def wait(self) -> None:
        """Until all sessions have settled."""
        await self._complete.wait()

    @property
    def _scored(self) -> list[Scored]:
        return [scored for scored in self._settled.values() if scored is not None]

    @property
    def responses(self) -> int:
        """Number of scored responses."""
        return len(self._scored)

    @property
    def successes(self) -> int:
        """Number of correct responses."""
        return sum(scored.correct for scored in self._scored)

    @property
    def uniform(self) -> bool:
        """Whether DAPO's filter drops the group, by verl's rule: none failed, and the metric is the same for all."""
        return self.responses == self.size > 1 and float(np.std([scored.metric for scored in self._scored])) == 0.0

    def successes_beside(self, session: int) -> int:
        """Number of correct responses of the other sessions; one that failed is not correct."""
        return sum(scored is not None and scored.correct for i, scored in self._settled.items() if i != session)

    def correct_beside(self, session: int) -> str | None:
        """A correct response of another session, the next one in order, so that siblings see different ones."""
        for other in ((session + step) % self.size for step in range(1, self.size)):
            scored = self._settled.get(other)
            if scored is not None and scored.correct:
                return scored.text
        return None
