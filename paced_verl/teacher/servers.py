"""The teacher's log-probabilities of a response, from vLLM servers: verl's teacher pool, or the student's own."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import torch
from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager
from verl.workers.rollout.llm_server import LLMServerClient
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
        topk: Tokens to ask for; the servers' ``max_logprobs`` must allow them.
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
