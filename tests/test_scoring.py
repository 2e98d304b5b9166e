"""A teacher's log-probabilities on their way from a server to the positions that the loss reads."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from paced_verl import scoring
from paced_verl.scoring import StudentServers, at_student_positions, in_vocabulary, response_positions


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_positions_of_a_response_are_those_before_its_tokens(prompt: int, response: int) -> None:
    tokens = list(range(100, 100 + prompt + response))
    following = [*tokens[1:], None]  # what position i predicts
    assert following[response_positions(prompt + response, response)] == tokens[prompt:]


def test_a_teachers_scores_lie_where_the_student_predicts_the_same_token() -> None:
    """The teacher's prompt is longer: rows move to the student's positions, and the rest is a distribution."""
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]], dtype=torch.int32)
    log_probs = torch.tensor([[-0.1, -3.0], [-0.2, -2.0], [-0.3, -1.5]])
    placed, values = at_student_positions((ids, log_probs), length=7, response_length=3, topk=2)
    assert placed.dtype == torch.int32
    assert placed[3:6].equal(ids)
    assert values[3:6].equal(log_probs)
    for position in (0, 1, 2, 6):
        assert placed[position].tolist() == [0, 1]
        assert values[position].exp().sum().item() == pytest.approx(1)


def test_a_teacher_that_was_not_asked_leaves_a_distribution_everywhere() -> None:
    ids, log_probs = at_student_positions(None, length=4, response_length=2, topk=8)
    assert ids.shape == log_probs.shape == (4, 8)
    assert all(len(set(row)) == 8 for row in ids.tolist())
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(4))


@given(st.data())
def test_ids_beyond_the_students_vocabulary_lose_their_probability_and_double_no_token(data: st.DataObject) -> None:
    size, k = 12, 5
    rows = data.draw(st.lists(st.lists(st.integers(0, 19), min_size=k, max_size=k, unique=True), min_size=1))
    ids, log_probs = torch.tensor(rows, dtype=torch.int32), torch.full((len(rows), k), math.log(1 / k))
    known = ids < size
    fixed, values = in_vocabulary(ids, log_probs, size)
    assert fixed[known].equal(ids[known])
    assert values[known].equal(log_probs[known])
    assert (values[~known] == -math.inf).all()
    assert (fixed < size).all()
    assert all(len(set(row)) == k for row in fixed.tolist()), "no token twice"


class Server(LLMServerClient):
    """Answers with what it is told, one after the other, and the last for ever; notes what it was asked."""

    def __init__(self, *answers: TokenOutput):
        self.answers, self.asked = list(answers), []
        self.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": "vllm", "full_determinism": False}}})

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        return "server", SimpleNamespace(generate=SimpleNamespace(remote=self._answer))

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        pass

    async def _answer(self, **request: Any) -> TokenOutput:
        self.asked.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


INTERRUPTED = [
    TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"global_steps": 3}),
    TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"prompt_ids": [[0]], "prompt_logprobs": [[0.0]]}),
]
SCORED = {"prompt_ids": [[1, 2], [3, 4], [5, 6]], "prompt_logprobs": [[-0.1, -3.0]] * 3}
ROLLOUT = SimpleNamespace(multi_modal_data=None, mm_processor_kwargs=None, mm_processor_output=None)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PAUSE_SECONDS", 0.0)


def test_a_request_that_updates_of_the_weights_interrupt_is_asked_again() -> None:
    scored = TokenOutput(token_ids=[7], stop_reason="completed", extra_fields=SCORED)
    server = Server(*INTERRUPTED, scored)
    ids, log_probs = asyncio.run(StudentServers(server, topk=2).top_k([7, 8, 9], ROLLOUT, None))
    assert ids.tolist() == SCORED["prompt_ids"]
    assert ids.dtype == torch.int32
    torch.testing.assert_close(log_probs, torch.tensor(SCORED["prompt_logprobs"]))
    assert len(server.asked) == 3
    assert all(request["prompt_ids"] == [7, 8, 9] for request in server.asked)
    assert all(request["sampling_params"]["prompt_logprobs"] == 2 for request in server.asked)


def test_a_server_that_never_scores_is_given_up_with_what_it_said() -> None:
    server = Server(*INTERRUPTED)
    with pytest.raises(RuntimeError, match=r"student's own rollout servers were asked 60 times .* of 3 tokens") as told:
        asyncio.run(StudentServers(server, topk=2).top_k([7, 8, 9], ROLLOUT, None))
    assert "those of 1 (stop_reason=aborted)" in str(told.value)
    assert len(server.asked) == scoring.ATTEMPTS
