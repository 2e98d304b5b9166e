"""Whose response a row gets, what the teacher sees, and when the teacher is asked: verl's agent loop, told by the row.

A worker holds no state of its own: everything it needs is in the row's fields (:mod:`paced_verl.fields`).
"""

from __future__ import annotations

import math
import time
from typing import Any
from uuid import uuid4

import ray
import torch
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.passrate import is_correct
from paced_verl.prompts import Prompts


class PacedAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[name-defined,misc]
    """verl's TransferQueue agent-loop worker, with teacher responses and teacher contexts."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.paced = PacedConfig.parse(self.config.paced)
        self.prompts = Prompts(
            self.paced.teacher,
            tokenizer=self.tokenizer,
            processor=self.processor,
            data=self.config.data,
            model_type=self.hf_model_type,
            prompt_length=self.rollout_config.prompt_length,
        )
        self.errors: list[str] = []

    def pop_errors(self) -> list[str]:
        """What went wrong in rollouts since the last call, first line first; verl only logs it."""
        errors, self.errors = self.errors, []
        return errors

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **row: Any,
    ) -> Any:
        try:
            if fields.TEMPERATURE in row:
                sampling_params = sampling_params | {
                    "temperature": row.pop(fields.TEMPERATURE),
                    "top_p": 1.0,
                    "top_k": -1,
                }
            if fields.STAGE not in row:
                return await super()._run_agent_loop(
                    sampling_params, trajectory, agent_name=agent_name, trace=trace, **row
                )
            responses, target = row.pop(fields.RESPONSES), row.pop(fields.TARGET)
            row[fields.PROMPT] = torch.tensor([row[fields.PROMPT]])
            row[fields.STAGE] = torch.tensor([row[fields.STAGE]])
            row[fields.WEIGHT] = torch.tensor([row[fields.WEIGHT]], dtype=torch.float32)
            row[fields.TEACHER] = torch.zeros(3)
            if responses == "student":
                return await super()._run_agent_loop(
                    sampling_params, trajectory, agent_name=agent_name, trace=trace, **row
                )
            output = await self._teacher_response(target, row)
            return await self._agent_loop_postprocess(output, trajectory["validate"], **row)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            raise

    async def _teacher_response(self, target: list[int] | None, row: dict[str, Any]) -> AgentLoopOutput:
        """The stored response, or one that the teacher server writes under its own context and that is kept."""
        prompt_ids = self.prompts.student(row)
        if target:
            return self._as_output(prompt_ids, target, row)
        if target is not None:
            return self._gave_up(prompt_ids, row)
        if row[fields.WEIGHT].item() == 0:
            return self._nothing(prompt_ids, row)
        started = time.monotonic()
        for _ in range(self.paced.targets.attempts):
            output = self._as_output(prompt_ids, await self._ask_for_response(row), row)
            if self.paced.targets.keep == "correct":
                await self._compute_score([output], kwargs=row)
            if self.paced.targets.keep == "all" or self._is_correct(output):
                break
        else:
            output = self._gave_up(prompt_ids, row)
        row[fields.TEACHER][1] += time.monotonic() - started
        return output

    async def _ask_for_response(self, row: dict[str, Any]) -> list[int]:
        prompt_ids = self.prompts.teacher(row)
        output = await self.teacher_client[self._teacher(row)].generate(
            request_id=uuid4().hex,
            prompt_ids=prompt_ids,
            sampling_params={
                "max_tokens": self.rollout_config.response_length,
                "temperature": self.paced.targets.temperature,
                "top_p": self.paced.targets.top_p,
            },
        )
        row[fields.TEACHER][0] += len(prompt_ids) + len(output.token_ids)
        return list(output.token_ids)

    def _is_correct(self, output: AgentLoopOutput) -> bool:
        extra = output.extra_fields.get("reward_extra_info") or {}
        return is_correct(output.reward_score, extra, self.paced.pass_rate.threshold)

    def _as_output(self, prompt_ids: list[int], response_ids: list[int], row: dict[str, Any]) -> AgentLoopOutput:
        response_ids = list(response_ids)[: self.rollout_config.response_length]
        version = row["global_steps"] - 1  # the weights that the step's rollouts use, as verl's servers report it
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=[1] * len(response_ids),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={
                "turn_scores": [],
                "tool_rewards": [],
                "min_global_steps": version,
                "max_global_steps": version,
            },
        )

    def _gave_up(self, prompt_ids: list[int], row: dict[str, Any]) -> AgentLoopOutput:
        row[fields.TEACHER][2] = 1
        return self._nothing(prompt_ids, row)

    def _nothing(self, prompt_ids: list[int], row: dict[str, Any]) -> AgentLoopOutput:
        """A row that trains nothing, so that a batch keeps its shape where there is no response."""
        output = self._as_output(prompt_ids, [self.tokenizer.eos_token_id], row)
        output.response_mask = [0]
        output.reward_score = 0.0
        output.extra_fields["reward_extra_info"] = {}
        row[fields.WEIGHT].zero_()
        return output

    async def _compute_teacher_logprobs(
        self,
        output: AgentLoopOutput,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """The teacher's log-probabilities of the response, under its own context, at the student's positions."""
        if validate:
            return
        assert sample_kwargs is not None
        length, topk = len(prompt_ids) + len(response_ids), self.paced.teacher.topk
        # Positions that are not read by the loss hold a valid distribution all the same.
        teacher_ids = torch.arange(topk, dtype=torch.int32).repeat(length, 1)
        teacher_logprobs = torch.full((length, topk), -math.log(topk))
        if sample_kwargs[fields.WEIGHT].item() > 0:
            started = time.monotonic()
            # The student's own tokens where both see the same: it may have had several turns.
            privileged = self.prompts.context.privileged
            sequence_ids = (self.prompts.teacher(sample_kwargs) if privileged else prompt_ids) + list(response_ids)
            ids, logprobs = await self.teacher_server_manager.compute_teacher_logprobs_single(
                sequence_ids=sequence_ids,
                multi_modal_data=output.multi_modal_data,
                mm_processor_kwargs=output.mm_processor_kwargs,
                mm_processor_output=output.mm_processor_output,
                routing_key=self._routing_key(sample_kwargs),
            )
            # A position holds the distribution of the next token: the response's are the last ones but one.
            response = slice(-len(response_ids) - 1, -1)
            teacher_ids[response], teacher_logprobs[response] = self._in_vocabulary(ids[response], logprobs[response])
            sample_kwargs[fields.TEACHER][0] += len(sequence_ids)
            sample_kwargs[fields.TEACHER][1] += time.monotonic() - started
        output.extra_fields["teacher_ids"] = teacher_ids
        output.extra_fields["teacher_logprobs"] = teacher_logprobs

    def _in_vocabulary(self, ids: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give probability 0 to a teacher's ids that the student has no logit for.

        Models of one family pad one vocabulary to several sizes; such an id is no token of the tokenizer.
        """
        size = self.model_config.hf_config.vocab_size
        unknown = ids >= size
        for row, column in unknown.nonzero().tolist():
            # Any id that the row lacks: one that is there twice would count its token twice.
            taken = set(ids[row].tolist())
            ids[row, column] = next(token for token in range(size) if token not in taken)
        return ids, logprobs.masked_fill(unknown, -math.inf)

    def _routing_key(self, row: dict[str, Any]) -> str | None:
        value = row.get(self.teacher_key)
        return value.item() if hasattr(value, "item") else value

    def _teacher(self, row: dict[str, Any]) -> str:
        return self.teacher_server_manager._resolve_teacher_key(self._routing_key(row))


class PacedAgentLoopManager(AgentLoopManagerTQ):
    """verl's agent-loop manager with :class:`PacedAgentLoopWorker` as its workers."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(PacedAgentLoopWorker)

    def pop_errors(self) -> list[str]:
        """What went wrong in the workers' rollouts since the last call."""
        return [
            error for errors in ray.get([w.pop_errors.remote() for w in self.agent_loop_workers]) for error in errors
        ]
