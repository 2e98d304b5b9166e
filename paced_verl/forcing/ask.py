"""Asks the servers: continuations that begin with given tokens, judged, and what models say of responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from paced_verl.alignment.nodes import TopOf
from paced_verl.alignment.tree import FREE, Rollout
from paced_verl.targets.judge import Judge
from paced_verl.teacher.positions import response_positions
from paced_verl.teacher.protocol import Media, Teacher

AT_ONCE = 256
"""Requests that a server has at a time: it batches them."""
T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """What is sampled from.

    Attributes:
        response_length: Tokens of a response at most.
        ends: Token ids that end one.
        sampling: vLLM's parameters of an unforced response.
    """

    response_length: int
    ends: frozenset[int]
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """A rollout, and what it took.

    Attributes:
        rollout: Judged.
        text: Decoded.
        truncated: Whether it reached the length limit without an end.
        generated: Tokens that the student wrote.
    """

    rollout: Rollout
    text: str
    truncated: bool
    generated: int


class Student:
    """The student's servers, and the verifier.

    Args:
        servers: Of the student.
        judge: Says what is correct; it runs in threads.
        policy: What is sampled from.
    """

    def __init__(self, servers: Teacher, judge: Judge, policy: Policy):
        self.servers, self.judge, self.policy = servers, judge, policy

    async def finish(self, row: Any, prompt: Sequence[int], begun: tuple[int, ...] = ()) -> Written:
        """A response that begins with these tokens, whose last one is the forced one."""
        policy = self.policy
        room = policy.response_length - len(begun)
        ended = bool(begun) and begun[-1] in policy.ends
        said: list[int] = []
        if room > 0 and not ended:
            sampling = policy.sampling | {"max_tokens": room}
            said = await self.servers.respond([*prompt, *begun], sampling, None)
        tokens = (*begun, *said)
        truncated = not tokens or tokens[-1] not in policy.ends
        text, correct = await asyncio.to_thread(self.judge, row, tokens)
        forced = len(begun) - 1 if begun else FREE
        return Written(Rollout(tokens, forced, float(correct)), text, truncated, len(said))


async def top_of(teacher: Teacher, key: str | None, prompt: Sequence[int], response: Sequence[int]) -> list[TopOf]:
    """What a model says of every token of a response, (tokens of the response,)."""
    sequence = [*prompt, *response]
    ids, log_probs = await teacher.top_k(sequence, Media(), key)
    place = response_positions(len(sequence), len(response))
    return [
        TopOf(row.numpy().astype(np.int64), values.numpy().astype(np.float64))
        for row, values in zip(ids[place], log_probs[place], strict=True)
    ]


async def together(tasks: Iterable[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Results in the order of the tasks, ``AT_ONCE`` of which run at a time; the first failure ends them all."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(task: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with free:
            return await task()

    running = [asyncio.ensure_future(one(task)) for task in tasks]
    try:
        return await asyncio.gather(*running)
    except BaseException:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
