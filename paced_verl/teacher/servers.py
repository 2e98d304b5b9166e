"""vLLM servers that score a response and write one: verl's teacher pool, and the student's own.

A run's trainer starts them; ``start`` does without one, for what measures models and trains none.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import ray
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.experimental.teacher_loop import MultiTeacherModelManager
from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager
from verl.single_controller.ray.base import ResourcePoolManager
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager
from verl.workers.rollout.replica import TokenOutput

from paced_verl.teacher.positions import TopK
from paced_verl.teacher.protocol import Media

ATTEMPTS = 60  # an update of the weights interrupts a request; no request is interrupted by so many
PAUSE_SECONDS = 1.0


class TeacherServers:
    """verl's teacher pool.

    Args:
        manager: verl's client of it, which routes by key and asks for ``distillation_loss.topk`` tokens.
    """

    def __init__(self, manager: AsyncTeacherLLMServerManager):
        self.manager = manager

    async def top_k(self, sequence_ids: list[int], media: Media, key: str | None) -> TopK:
        """See :class:`~paced_verl.teacher.protocol.Teacher`."""
        return await self.manager.compute_teacher_logprobs_single(
            sequence_ids=sequence_ids,
            multi_modal_data=media.data,
            mm_processor_kwargs=media.processor_kwargs,
            mm_processor_output=media.processor_output,
            routing_key=key,
        )

    async def respond(self, prompt_ids: list[int], sampling: dict[str, Any], key: str | None) -> list[int]:
        """See :class:`~paced_verl.teacher.protocol.Teacher`."""
        client = self.manager.teacher_client[self.manager._resolve_teacher_key(key)]
        answer = await client.generate(request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling)
        return list(answer.token_ids)


class StudentServers:
    """The student's own rollout servers, hence its current weights.

    Args:
        client: verl's client of them.
        topk: Tokens to ask for; the servers' ``max_logprobs`` must allow them. 0: of each position only the token that
            the sequence goes on with, in one column.
    """

    def __init__(self, client: LLMServerClient, topk: int):
        self.client, self.topk = client, topk

    async def top_k(self, sequence_ids: list[int], media: Media, key: str | None) -> TopK:
        """See :class:`~paced_verl.teacher.protocol.Teacher`."""
        for _ in range(ATTEMPTS):
            answer = await self._ask(sequence_ids, media)
            # An update of the weights interrupts it: then there is no score, or one row that stands for nothing.
            scores = answer.extra_fields.get("prompt_logprobs") or []
            if len(scores) == len(sequence_ids):
                break
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            raise RuntimeError(
                f"The student's own rollout servers were asked {ATTEMPTS} times for the top-{self.topk} "
                f"log-probabilities of {len(sequence_ids)} tokens, and last answered with those of {len(scores)} "
                f"(stop_reason={answer.stop_reason}). Their log should say why."
            )
        ids = torch.tensor(answer.extra_fields["prompt_ids"], dtype=torch.int32)
        return ids, torch.tensor(scores)

    async def _ask(self, sequence_ids: list[int], media: Media) -> TokenOutput:
        data = media.data or {}
        # The plain client's method: the asynchronous trainers' client joins the parts of a response that weight updates
        # interrupt, and drops everything but the tokens.
        return await LLMServerClient.generate(
            self.client,
            request_id=uuid4().hex,
            prompt_ids=sequence_ids,
            sampling_params={"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": self.topk, "detokenize": False},
            image_data=data.get("images"),
            video_data=data.get("videos"),
            audio_data=data.get("audios"),
            mm_processor_kwargs=media.processor_kwargs,
            mm_processor_output=media.processor_output,
        )

    async def respond(self, prompt_ids: list[int], sampling: dict[str, Any], key: str | None) -> list[int]:
        """See :class:`~paced_verl.teacher.protocol.Teacher`."""
        answer = await self.client.generate(request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling)
        return list(answer.token_ids)


@dataclass(frozen=True)
class Servers:
    """Servers of a student and its teachers that no trainer has started. They live as long as the Ray job.

    Attributes:
        teacher: None where ``paced.teacher.backend`` is another than ``server``.
    """

    student: StudentServers
    teacher: TeacherServers | None


def start(config: DictConfig) -> Servers:
    """Start the vLLM servers of a settled configuration, and Ray with its ``ray_kwargs.ray_init`` if it does not run.

    The student's take the GPUs that the trainer would have (or ``rollout.nnodes`` × ``rollout.n_gpus_per_node``, where
    these are set), the teachers' those of ``distillation``.

    Args:
        config: verl's whole configuration, as :func:`~paced_verl.launch.hydra.describe` leaves it. It is not changed.

    Raises:
        ValueError: Ray has fewer GPUs than are asked for (verl's ``ResourcePoolManager``).
    """
    alone = without_trainer(config)
    if not ray.is_initialized():
        ray.init(**cast(dict[str, Any], OmegaConf.to_container(alone.ray_kwargs.ray_init)))
    teacher = _start_teachers(alone) if alone.paced.teacher.backend == "server" else None
    client = LLMServerManager.create(config=alone).get_client()
    return Servers(StudentServers(client, alone.distillation.distillation_loss.topk), teacher)


def _start_teachers(config: DictConfig) -> TeacherServers:
    pool = [config.distillation.n_gpus_per_node] * config.distillation.nnodes
    pools = ResourcePoolManager(resource_pool_spec={"teacher_pool": pool}, mapping={})
    pools.create_resource_pool()
    manager = MultiTeacherModelManager(config=config, resource_pool=pools.resource_pool_dict["teacher_pool"])
    return TeacherServers(AsyncTeacherLLMServerManager(config, manager.get_client()))


def without_trainer(config: DictConfig) -> DictConfig:
    """A run's configuration, as its servers need it where no trainer hands them weights and places them."""
    alone = copy.deepcopy(config)
    rollout, loss = alone.actor_rollout_ref.rollout, alone.distillation.distillation_loss
    with open_dict(alone):
        rollout.load_format = "auto"  # verl's default leaves the weights to the trainer
        if not rollout.nnodes:
            rollout.nnodes, rollout.n_gpus_per_node = alone.trainer.nnodes, alone.trainer.n_gpus_per_node
        vllm = rollout.engine_kwargs.setdefault("vllm", {})
        vllm.max_logprobs = max(vllm.get("max_logprobs") or 0, loss.topk)
        # As verl's run_ppo does before it starts Ray.
        own = alone.ray_kwargs.ray_init.get("runtime_env") or {}
        alone.ray_kwargs.ray_init.runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(alone), own)
    return alone
