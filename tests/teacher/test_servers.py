"""Asking a server for the teacher's log-probabilities."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from paced_verl.launch.hydra import compose, describe
from paced_verl.teacher import servers
from paced_verl.teacher.protocol import Media
from paced_verl.teacher.servers import StudentServers


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


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PAUSE_SECONDS", 0.0)


def test_a_request_that_updates_of_the_weights_interrupt_is_asked_again() -> None:
    scored = TokenOutput(token_ids=[7], stop_reason="completed", extra_fields=SCORED)
    server = Server(*INTERRUPTED, scored)
    ids, log_probs = asyncio.run(StudentServers(server, topk=2).top_k([7, 8, 9], Media(), None))
    assert ids.tolist() == SCORED["prompt_ids"]
    assert ids.dtype == torch.int32
    torch.testing.assert_close(log_probs, torch.tensor(SCORED["prompt_logprobs"]))
    assert len(server.asked) == 3
    assert all(request["prompt_ids"] == [7, 8, 9] for request in server.asked)
    assert all(request["sampling_params"]["prompt_logprobs"] == 2 for request in server.asked)


def test_a_server_that_never_scores_is_given_up_with_what_it_said() -> None:
    server = Server(*INTERRUPTED)
    with pytest.raises(RuntimeError, match=r"student's own rollout servers were asked 60 times .* of 3 tokens") as told:
        asyncio.run(StudentServers(server, topk=2).top_k([7, 8, 9], Media(), None))
    assert "those of 1 (stop_reason=aborted)" in str(told.value)
    assert len(server.asked) == servers.ATTEMPTS


def composed(*overrides: str) -> DictConfig:
    config = compose(["+paced=two_stage", "+machine=cpu", "actor_rollout_ref.model.path=student",
                      "distillation.teacher_models.teacher_model.model_path=teacher", *overrides])  # fmt: skip
    describe(config, files=False)
    return config


def test_without_a_trainer_the_servers_load_weights_and_take_its_gpus() -> None:
    config = composed("trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.ppo_mini_batch_size=64")
    before = OmegaConf.to_container(config)
    alone = servers.without_trainer(config)
    assert OmegaConf.to_container(config) == before, "the run's own stays as it is"
    rollout = alone.actor_rollout_ref.rollout
    assert (config.actor_rollout_ref.rollout.load_format, rollout.load_format) == ("dummy", "auto")
    assert (rollout.nnodes, rollout.n_gpus_per_node) == (1, 2)
    assert rollout.engine_kwargs.vllm.max_logprobs == config.paced.teacher.topk == 64
    variables = alone.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.VLLM_LOGGING_LEVEL, "as verl's launcher has Ray's workers have it"


def test_without_a_trainer_what_is_set_for_rollouts_of_their_own_stays() -> None:
    alone = servers.without_trainer(
        composed(
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=4",
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs=100",
            "+ray_kwargs.ray_init.runtime_env.env_vars.VLLM_LOGGING_LEVEL=DEBUG",
        )
    )
    rollout = alone.actor_rollout_ref.rollout
    assert (rollout.n_gpus_per_node, rollout.engine_kwargs.vllm.max_logprobs) == (4, 100)
    assert alone.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_LOGGING_LEVEL == "DEBUG"
