"""Counting what servers read and write: every request of verl's own clients, and what each was for."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from paced_verl import fields
from paced_verl.run.outcomes import Report
from paced_verl.run.tokens import KINDS, Tokens
from paced_verl.teacher.protocol import Media
from paced_verl.teacher.servers import StudentServers
from paced_verl.training.counting import count_tokens
from paced_verl.training.rollout import _PURPOSE, PacedAgentLoopWorker
from tests.teacher.test_servers import SCORED, Server


class Interrupted(Server, FullyAsyncLLMServerClient):
    """An asynchronous trainer's client: it joins the parts of a response that updates of the weights interrupt."""

    _only_hybrid = False


def counted(client: LLMServerClient) -> list[tuple[int, int]]:
    heard: list[tuple[int, int]] = []
    count_tokens(client, lambda prompt, generated: heard.append((prompt, generated)))
    return heard


def test_a_request_is_counted_with_what_was_read_and_what_came_back() -> None:
    client = Server(TokenOutput(token_ids=[5, 6], stop_reason="completed", extra_fields={}))
    heard = counted(client)
    answer = asyncio.run(client.generate("id", prompt_ids=[1, 2, 3], sampling_params={"max_tokens": 9}))
    assert answer.token_ids == [5, 6]
    assert heard == [(3, 2)]
    assert client.asked[0]["sampling_params"] == {"max_tokens": 9}, "and reaches the server as it was"


def test_parts_of_an_interrupted_response_are_requests_of_their_own() -> None:
    parts = [
        TokenOutput(token_ids=[5, 6], stop_reason="aborted", extra_fields={"global_steps": 1}),
        TokenOutput(token_ids=[7], stop_reason="completed", extra_fields={"global_steps": 2}),
    ]
    client = Interrupted(*parts)
    heard = counted(client)
    answer = asyncio.run(client.generate("id", prompt_ids=[1, 2, 3], sampling_params={"max_tokens": 9}))
    assert list(answer.token_ids) == [5, 6, 7]
    assert heard == [(3, 2), (5, 1)], "the servers read the first part again"


def test_a_request_that_fails_is_not_counted() -> None:
    client = Server()

    async def fails(**_: Any) -> TokenOutput:
        raise ConnectionError("refused")

    client._answer = fails  # type: ignore[method-assign]
    heard = counted(client)
    with pytest.raises(ConnectionError):
        asyncio.run(client.generate("id", prompt_ids=[1], sampling_params={}))
    assert heard == []


def test_what_the_students_servers_score_as_its_teacher_is_a_teachers() -> None:
    client = Server(TokenOutput(token_ids=[7], stop_reason="completed", extra_fields=SCORED))
    teaches = copy.copy(client)
    rollouts, teaching = counted(client), counted(teaches)
    asyncio.run(StudentServers(teaches, topk=2).top_k([7, 8, 9], Media(), None))
    assert (rollouts, teaching) == ([], [(3, 1)])


@pytest.mark.parametrize(
    ("row", "validate", "kind"),
    [({fields.TEMPERATURE: 1.0}, True, "estimate"), ({}, True, "validation"), ({}, False, "student")],
)
def test_a_session_is_counted_as_what_it_is_for(
    row: dict[str, Any], validate: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PacedAgentLoopWorker.__new__(PacedAgentLoopWorker)
    made.visits, made.report = {}, Report()

    async def generates(self: Any, *_: Any, **__: Any) -> None:
        await asyncio.sleep(0)  # others run meanwhile
        self._count(_PURPOSE.get(), 3, 2)

    monkeypatch.setattr(PacedAgentLoopWorker.__mro__[1], "_run_agent_loop", generates)

    async def sessions() -> None:
        calls = [
            made._run_agent_loop({}, {"validate": is_val}, agent_name="", uid="u", session_id=0, **given)
            for given, is_val in ((row, validate), ({fields.TEMPERATURE: 1.0}, True))
        ]
        await asyncio.gather(*calls)

    asyncio.run(sessions())
    expected = Tokens()
    expected.add(kind, 3, 2)  # type: ignore[arg-type]
    expected.add("estimate", 3, 2)
    assert made.pop_report().tokens == expected


def test_sums_of_workers_add_up_and_name_every_kind() -> None:
    report, other = Report(), Report()
    report.tokens.add("student", 3, 2)
    other.tokens.add("student", 1, 1)
    other.tokens.add("teacher", 10, 1)
    report.add([pickle.loads(pickle.dumps(other))])
    metrics = report.tokens.metrics()
    assert len(metrics) == 2 * len(KINDS)
    assert {name: value for name, value in metrics.items() if value} == {
        "paced/tokens/student/prompt": 4.0,
        "paced/tokens/student/generated": 3.0,
        "paced/tokens/teacher/prompt": 10.0,
        "paced/tokens/teacher/generated": 1.0,
    }
