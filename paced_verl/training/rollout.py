"""Whose response a row gets, what the teacher sees, and when the teacher is asked: verl's agent loop, told by the row.

A worker holds no state beyond a step: everything it needs is in the row's fields (:mod:`paced_verl.fields`) and, where
the teacher waits for a prompt's whole group of responses, in the group.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import ray
import torch
from omegaconf import DictConfig, open_dict
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.pacing.pass_rates import is_correct
from paced_verl.run.group import Scored
from paced_verl.run.outcomes import Report, Visit
from paced_verl.run.tokens import Kind
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.positions import at_student_positions, in_vocabulary, response_positions
from paced_verl.teacher.prompts import Prompts
from paced_verl.teacher.protocol import Media, Teacher
from paced_verl.teacher.servers import StudentServers, TeacherServers
from paced_verl.training.counting import count_tokens

_TENSORS = {fields.PROMPT: torch.int64, fields.STAGE: torch.int64, fields.MIX: torch.float32,
            fields.WEIGHT: torch.float32, fields.TASK: torch.float32}  # fmt: skip

_PURPOSE: ContextVar[Kind] = ContextVar("purpose", default="student")
"""What the session is for that a task runs: its requests are counted as that."""


class PacedAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[name-defined,misc]
    """verl's TransferQueue agent-loop worker, with teacher responses and teacher contexts."""

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any):
        self.paced = PacedConfig.parse(config.paced)
        backend = self.paced.teacher.backend
        if backend != "server":  # there is no teacher pool for verl's worker to connect to
            config = copy.deepcopy(config)
            with open_dict(config):
                config.distillation.enabled = False
        super().__init__(config, *args, **kwargs)
        self.prompts = Prompts(
            tokenizer=self.tokenizer,
            processor=self.processor,
            data=self.config.data,
            model_type=self.hf_model_type,
            prompt_length=self.rollout_config.prompt_length,
        )
        names = {*self.paced.teacher.contexts, *([self.paced.route.context] if self.paced.route else [])}
        self.contexts = {name: TeacherContext(name, self.paced.teacher.solution_key) for name in names}
        # A reference-worker teacher scores in the trainer's workers, when the step's rows are complete.
        topk = self.paced.teacher.topk
        teaches = copy.copy(self.llm_client)  # apart, as its requests count as a teacher's
        self.student: Teacher | None = StudentServers(teaches, topk) if isinstance(topk, int) else None
        servers: dict[str, Callable[[], Teacher | None]] = {
            "server": lambda: TeacherServers(self.teacher_server_manager),
            "student": lambda: self.student,
            "reference": lambda: None,
        }
        self.teacher = servers[backend]()
        count_tokens(self.llm_client, lambda *tokens: self._count(_PURPOSE.get(), *tokens))
        for client in (teaches, *(self.teacher_server_manager.teacher_client.values() if backend == "server" else ())):
            count_tokens(client, partial(self._count, "teacher"))
        filter_groups = config.algorithm.get("filter_groups") or {}
        self.filter_metric: str | None = filter_groups.get("metric") if filter_groups.get("enable") else None
        self.waits_for_group = (
            self.paced.weight.source == "group"
            or self.filter_metric is not None
            or any(context.needs for context in self.contexts.values())
        )
        self.visits: dict[str, Visit] = {}
        self.report = Report()

    def _count(self, kind: Kind, prompt: int, generated: int) -> None:
        self.report.tokens.add(kind, prompt, generated)

    def pop_report(self) -> Report:
        """How rollouts ended since the last call; verl only logs what went wrong."""
        report, self.report = self.report, Report()
        return report

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **row: Any,
    ) -> Any:
        error: str | None = None
        _PURPOSE.set("estimate" if fields.TEMPERATURE in row else "validation" if trajectory["validate"] else "student")
        try:
            if fields.TEMPERATURE in row:
                sampling_params = sampling_params | {
                    "temperature": row.pop(fields.TEMPERATURE),
                    "top_p": 1.0,
                    "top_k": -1,
                }
            if fields.STAGE not in row and fields.TARGET in row:
                output = await self._read(row.pop(fields.TARGET), row)
                return await self._agent_loop_postprocess(output, trajectory["validate"], **row)
            if row.get(fields.BY_TEACHER):
                response_ids, _ = await self._ask_for_response(row)
                output = self._as_output(self.prompts.student(row), response_ids, row)
                return await self._agent_loop_postprocess(output, trajectory["validate"], **row)
            if fields.STAGE not in row:
                return await super()._run_agent_loop(
                    sampling_params, trajectory, agent_name=agent_name, trace=trace, **row
                )
            responses, target, sessions = (row.pop(name) for name in (fields.RESPONSES, fields.TARGET, fields.SESSIONS))
            row |= {name: torch.tensor([row[name]], dtype=dtype) for name, dtype in _TENSORS.items()}
            row[fields.TEACHER] = torch.zeros(len(fields.TEACHER_NAMES))
            self.visits.setdefault(row["uid"], Visit(int(row[fields.PROMPT]), sessions))
            if responses == "student":
                return await super()._run_agent_loop(
                    sampling_params, trajectory, agent_name=agent_name, trace=trace, **row
                )
            output = await self._teacher_response(target, row)
            return await self._agent_loop_postprocess(output, trajectory["validate"], **row)
        except Exception as raised:
            error = _in_words(raised)
            self.report.errors.append(error)
            raise
        finally:
            self._end(row, error)

    def _end(self, row: dict[str, Any], error: str | None) -> None:
        """Enter the end of a session, before verl publishes that of its prompt."""
        visit = self.visits.get(row["uid"])
        if visit is None:
            return
        visit.group.settle(row["session_id"], None)  # nobody waits for one that has failed, or has no response
        tokens = row[fields.TEACHER][fields.TEACHER_NAMES.index("tokens")].item() if fields.TEACHER in row else 0.0
        if visit.end(error, tokens):
            del self.visits[row["uid"]]
            self.report.outcomes.append(visit.outcome(filtered=self.filter_metric is not None))

    async def _read(self, response_ids: list[int], row: dict[str, Any]) -> AgentLoopOutput:
        """A response whose score is the mean log-probability, in nats, that the student's servers give its tokens."""
        output = self._as_output(self.prompts.student(row), response_ids, row)
        sequence_ids = [*output.prompt_ids, *output.response_ids]
        _, log_probs = await StudentServers(self.llm_client, topk=0).top_k(sequence_ids, Media(), None)
        place = response_positions(len(sequence_ids), len(output.response_ids))
        output.reward_score = log_probs[place].mean().item()
        output.extra_fields["reward_extra_info"] = {}
        return output

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
            response_ids, tokens = await self._ask_for_response(row)
            fields.count(row, tokens=tokens, tries=1)
            output = self._as_output(prompt_ids, response_ids, row)
            if self.paced.targets.keep == "correct":
                await self._compute_score([output], kwargs=row)
            if self.paced.targets.keep == "all" or self._is_correct(output):
                break
        else:
            output = self._gave_up(prompt_ids, row)
        fields.count(row, seconds=time.monotonic() - started)
        return output

    async def _ask_for_response(self, row: dict[str, Any]) -> tuple[list[int], int]:
        """A response of the teacher, and the tokens that it read and wrote for it."""
        assert self.teacher is not None, "checks: a reference-worker teacher writes nothing"
        prompt_ids = self.prompts.teacher(row, self._context(row))
        sampling = {
            "max_tokens": self.rollout_config.response_length,
            "temperature": self.paced.targets.temperature,
            "top_p": self.paced.targets.top_p,
        }
        response_ids = await self.teacher.respond(prompt_ids, sampling, self._routing_key(row))
        return response_ids, len(prompt_ids) + len(response_ids)

    def _is_correct(self, output: AgentLoopOutput) -> bool:
        assert output.reward_score is not None, "scored before it is judged"
        return is_correct(output.reward_score, _reward_extra(output), self.paced.pass_rate.threshold)

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
        fields.count(row, gave_up=1)
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
        row = sample_kwargs
        context = self._context(row)
        shown = await self._look_at_group(output, row, context)
        self._weigh_outcome(output, row)
        by_student = row.pop(fields.SELF)
        teacher = self.student if by_student else self.teacher
        weighs = row[fields.WEIGHT].item() > 0
        # The student's own tokens where both see the same: it may have had several turns.
        privileged = context.privileged and (weighs or not context.needs)
        teacher_prompt = self.prompts.teacher(row, context, shown) if privileged else list(prompt_ids)
        sequence_ids = teacher_prompt + list(response_ids)
        fields.count(row, **{"tokens" if weighs else "tokens_saved": len(sequence_ids)})
        if teacher is None:
            self._count("teacher", prompt=len(sequence_ids) if weighs else 0, generated=0)
            row[fields.TEACHER_PROMPT] = torch.tensor(teacher_prompt if weighs else teacher_prompt[-1:])
            return
        response = None
        if weighs:
            started = time.monotonic()
            ids, log_probs = await teacher.top_k(sequence_ids, _media(output), self._routing_key(row))
            place = response_positions(len(sequence_ids), len(response_ids))
            response = in_vocabulary(ids[place], log_probs[place], self.model_config.hf_config.vocab_size)
            fields.count(row, seconds=time.monotonic() - started, self_taught=by_student)
        topk = self.paced.teacher.topk
        assert isinstance(topk, int)
        ids, log_probs = at_student_positions(response, len(prompt_ids) + len(response_ids), len(response_ids), topk)
        output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"] = ids, log_probs

    async def _look_at_group(
        self, output: AgentLoopOutput, row: dict[str, Any], context: TeacherContext
    ) -> dict[str, str]:
        """Wait for the row's siblings if anything depends on them, and weigh the row by what they say.

        Returns:
            What the context shows of them, where it does: a correct response beside this one.
        """
        weights = row.pop(fields.GROUP_WEIGHTS)
        if not self.waits_for_group or row[fields.TEACHER][fields.TEACHER_NAMES.index("gave_up")]:
            return {}
        metric = 0.0
        if self.filter_metric is not None:
            metric = float(_reward_extra(output).get(self.filter_metric, output.reward_score) or 0.0)
        text = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
        group = self.visits[row["uid"]].group
        group.settle(row["session_id"], Scored(self._is_correct(output), text, metric))
        await group.wait()
        if weights is not None:
            row[fields.WEIGHT].fill_(weights[group.successes_beside(row["session_id"])])
        if self.filter_metric is not None and group.uniform:
            row[fields.WEIGHT].zero_()  # verl drops the group
        if not context.needs:
            return {}
        rollout = group.correct_beside(row["session_id"])
        if rollout is None:
            row[fields.WEIGHT].zero_()
            fields.count(row, no_context=1)
            return {}
        return {"rollout": rollout}

    def _weigh_outcome(self, output: AgentLoopOutput, row: dict[str, Any]) -> None:
        """Weigh a response of the student's by how it ended, where that is asked for."""
        factors = self.paced.weight.outcome
        if factors is not None and self.paced.schedule[int(row[fields.STAGE])].responses == "student":
            row[fields.WEIGHT].mul_(factors.correct if self._is_correct(output) else factors.wrong)

    def _context(self, row: dict[str, Any]) -> TeacherContext:
        if row.get(fields.SELF):
            assert self.paced.route is not None
            return self.contexts[self.paced.route.context]
        return self.contexts[self.paced.teacher.context_of(_plain(row.get("data_source")), self._routing_key(row))]

    def _routing_key(self, row: dict[str, Any]) -> str | None:
        key: str | None = _plain(row.get(self.config.distillation.teacher_key))
        return key


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _in_words(error: Exception) -> str:
    """The error as it was raised: Ray wraps one of another process in the whole way that it has come."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return f"{type(cause).__name__}: {cause}"


def _media(output: AgentLoopOutput) -> Media:
    return Media(output.multi_modal_data, output.mm_processor_kwargs, output.mm_processor_output)


def _reward_extra(output: AgentLoopOutput) -> dict[str, Any]:
    return output.extra_fields.get("reward_extra_info") or {}


class PacedAgentLoopManager(AgentLoopManagerTQ):
    """verl's agent-loop manager with :class:`PacedAgentLoopWorker` as its workers."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(PacedAgentLoopWorker)

    def pop_report(self) -> Report:
        """How the workers' rollouts ended since the last call."""
        report = Report()
        report.add(ray.get([worker.pop_report.remote() for worker in self.agent_loop_workers]))
        return report
