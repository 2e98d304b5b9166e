"""Counts what verl's servers read and write, request by request, where the requests are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient

Heard = Callable[[int, int], None]
"""Called with the tokens of a request's prompt and of its answer."""


def count_tokens(client: LLMServerClient, heard: Heard) -> None:
    """Have a client tell of every request that it makes, also of the parts of one that an update interrupts.

    Args:
        client: verl's, changed in place.
        heard: Called when a request is answered.
    """
    acquire = client._acquire_server

    async def acquire_counted(request_id: str, **extra: Any) -> tuple[str, Any]:
        server_id, server = await acquire(request_id, **extra)
        return server_id, _Counted(server, heard)

    client._acquire_server = acquire_counted  # type: ignore[method-assign]


class _Counted:
    """A server's handle, as far as a client uses it: ``server.generate.remote(…)``."""

    def __init__(self, server: Any, heard: Heard):
        self._server, self._heard = server, heard

    @property
    def generate(self) -> _Counted:
        return self

    async def remote(self, *, prompt_ids: list[int], **request: Any) -> Any:
        answer = await self._server.generate.remote(prompt_ids=prompt_ids, **request)
        self._heard(len(prompt_ids), len(answer.token_ids))
        return answer
