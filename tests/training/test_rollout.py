"""What an agent-loop worker asks of the teacher and reports of a prompt's rollouts; verl's own part is played."""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer

from paced_verl import fields
from paced_verl.config import ConfigError, TeacherConfig
from paced_verl.config.pacing import OutcomeConfig
from paced_verl.run.group import Group, Scored
from paced_verl.run.outcomes import Outcome, Report
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.servers import StudentServers
from paced_verl.training import rollout
from paced_verl.training.rollout import PacedAgentLoopWorker, _in_words
from tests.queue import Queue

VERL = PacedAgentLoopWorker.__mro__[1]
SEQUENCE = 5  # tokens: two of the prompt, three of the response


class Teacher:
    """Notes what it is asked to score, or refuses it."""

    def __init__(self, refuses: bool = False):
        self.asked, self.refuses = 0, refuses

    async def top_k(self, sequence_ids: list[int], media: Any, key: str | None) -> Any:
        self.asked += 1
        if self.refuses:
            raise ConnectionError("refused")
        tokens = len(sequence_ids)
        return torch.zeros(tokens, 1, dtype=torch.int32), torch.zeros(tokens, 1)


def worker(filters: bool, teacher: Teacher, student: Teacher | None = None) -> PacedAgentLoopWorker:
    """A worker with no more than its rollouts need."""
    made = PacedAgentLoopWorker.__new__(PacedAgentLoopWorker)
    made.paced = SimpleNamespace(
        pass_rate=SimpleNamespace(threshold=0.5),
        teacher=TeacherConfig(topk=1),
        route=SimpleNamespace(context="none"),
        weight=SimpleNamespace(outcome=None),
        schedule=[SimpleNamespace(responses="student"), SimpleNamespace(responses="teacher")],
    )
    made.config = OmegaConf.create({"distillation": {"teacher_key": "data_source"}})
    made.model_config = SimpleNamespace(hf_config=SimpleNamespace(vocab_size=8))
    made.tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "")
    made.contexts = {"none": TeacherContext("none", "solution")}
    made.teacher, made.student = teacher, student
    made.filter_metric = "acc" if filters else None
    made.waits_for_group = filters
    made.visits, made.report = {}, Report()
    return made


@pytest.fixture(autouse=True)
def verl(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's agent loop: the row's outcome by session is its response, scored, or an error; then the teacher."""

    async def run(
        self: Any, sampling_params: Any, trajectory: Any, *, outcomes: list, session_id: int, **row: Any
    ) -> Any:
        await asyncio.sleep(0)
        outcome = outcomes[session_id]
        if isinstance(outcome, Exception):
            raise outcome
        output = SimpleNamespace(reward_score=outcome, response_ids=[1, 2, 3], multi_modal_data=None)
        output.mm_processor_kwargs = output.mm_processor_output = None
        output.extra_fields = {"reward_extra_info": {"acc": outcome}}
        row["session_id"] = session_id
        await self._compute_teacher_logprobs(output, [1, 2], [1, 2, 3], validate=False, sample_kwargs=row)
        return output

    monkeypatch.setattr(VERL, "_run_agent_loop", run)


def run(made: PacedAgentLoopWorker, outcomes: list, weight: float = 1.0, by_student: bool = False) -> list[Any]:
    """All sessions of a prompt, at once; what each returned or raised."""
    row = {
        fields.PROMPT: 7,
        fields.STAGE: 0,
        fields.MIX: 0.0,
        fields.WEIGHT: weight,
        fields.TASK: 1.0,
        fields.RESPONSES: "student",
        fields.TARGET: None,
        fields.SESSIONS: len(outcomes),
        fields.SELF: by_student,
        fields.GROUP_WEIGHTS: None,
    }

    async def sessions() -> list[Any]:
        calls = [
            made._run_agent_loop(
                {}, {"validate": False}, agent_name="", uid="u", session_id=i, outcomes=outcomes, **copy.copy(row)
            )
            for i in range(len(outcomes))
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(sessions())


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_group_that_dapo_drops_is_reported_and_costs_no_teacher(score: float) -> None:
    made = worker(filters=True, teacher=Teacher())
    run(made, [score] * 4)
    assert made.teacher.asked == 0
    successes = 4 if score else 0
    assert made.pop_report() == Report([], [Outcome(7, successes=successes, responses=4, dropped=True)])
    assert made.pop_report() == Report()
    assert not made.visits, "nothing is kept of it"


@pytest.mark.parametrize("metrics", [[1.0], [0.0, 0.0], [0.1, 0.1, 0.1], [0.7] * 7, [1.0, 0.0], [-2.5] * 4])
def test_a_group_is_dropped_where_verl_drops_it(metrics: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(len(metrics))
    for session, metric in enumerate(metrics):
        group.settle(session, Scored(True, "", metric))
    queue = Queue({f"u_{i}_0": {"extra_fields": {"reward_extra_info": {"m": m}}} for i, m in enumerate(metrics)})
    queue.replace(monkeypatch, replay_buffer)
    buffer = replay_buffer.ReplayBuffer.__new__(replay_buffer.ReplayBuffer)
    buffer.filter_groups_metric = "m"
    buffer.partitions, buffer.finished_keys = {"train": dict.fromkeys(queue.rows)}, {"train": {"u"}}
    buffer._dapo_classification_cache = defaultdict(dict)
    dropped, _ = buffer._dapo_filtered_keys("train")
    assert group.uniform == ("u" in dropped)


@pytest.mark.parametrize(("stage", "expected"), [(0, [2.0, 0.0, 2.0]), (1, [4.0, 4.0, 4.0])])
def test_a_response_weighs_by_how_it_ended_and_one_of_the_teachers_as_its_prompt(
    stage: int, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight 4 of the prompt, halved where correct and nothing where wrong; what weighs nothing is not scored."""
    made = worker(filters=False, teacher=Teacher())
    made.paced.weight.outcome = OutcomeConfig(correct=0.5, wrong=0.0)
    seen: list[float] = []
    scores = VERL._run_agent_loop

    async def run_and_look(self: Any, *args: Any, **row: Any) -> Any:
        row[fields.STAGE] = torch.tensor([stage])
        output = await scores(self, *args, **row)
        seen.append(row[fields.WEIGHT].item())
        return output

    monkeypatch.setattr(VERL, "_run_agent_loop", run_and_look)
    run(made, [1.0, 0.0, 1.0], weight=4.0)
    assert seen == expected
    assert made.teacher.asked == sum(weight > 0 for weight in expected)


def test_a_teacher_that_is_measured_writes_under_its_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its response is judged where verl's validation is, by the row's own reward, and nobody scores it."""
    seen: dict[str, Any] = {}

    class Writer(Teacher):
        async def respond(self, prompt_ids: list[int], sampling: dict[str, Any], key: str | None) -> list[int]:
            seen.update(prompt=prompt_ids, sampling=sampling, key=key)
            return [4, 5, 6]

    made = worker(filters=False, teacher=Writer())
    made.paced.targets = SimpleNamespace(temperature=0.7, top_p=0.9)
    made.rollout_config = SimpleNamespace(response_length=3)
    made.prompts = SimpleNamespace(student=lambda row: [1], teacher=lambda row, context: [8, 9])

    async def postprocess(self: Any, output: Any, validate: bool, **row: Any) -> str:
        seen.update(output=output, validate=validate, row=row)
        return "stored"

    monkeypatch.setattr(VERL, "_agent_loop_postprocess", postprocess)
    row = {
        fields.PROMPT: 7,
        fields.TEMPERATURE: 1.0,
        fields.BY_TEACHER: True,
        "data_source": "maths",
        "global_steps": 4,
    }
    call = made._run_agent_loop({}, {"validate": True}, agent_name="", uid="u", session_id=0, **row)
    assert asyncio.run(call) == "stored"
    assert (seen["prompt"], seen["key"]) == ([8, 9], "maths")
    assert seen["sampling"] == {"max_tokens": 3, "temperature": 0.7, "top_p": 0.9}
    assert (seen["output"].prompt_ids, seen["output"].response_ids) == ([1], [4, 5, 6])
    assert seen["validate"]
    assert seen["row"][fields.PROMPT] == 7
    assert seen["row"][fields.BY_TEACHER], "which the driver counts it by"
    assert made.teacher.asked == 0


def test_a_response_that_is_read_scores_its_tokens_mean_log_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the student's own servers, as part of an estimate; no reward function sees it, and nobody is asked besides."""
    seen: dict[str, Any] = {}

    async def ask(self: Any, sequence_ids: list[int], media: Any) -> Any:
        seen.update(sequence=sequence_ids, topk=self.topk, purpose=rollout._PURPOSE.get())
        # What verl's servers say: at each position of the token after it; the last one's stands for nothing.
        scores = [[-9.0], [-1.0], [-2.0], [-6.0], [0.0]]
        return SimpleNamespace(extra_fields={"prompt_logprobs": scores, "prompt_ids": [[0]] * 5}, stop_reason="")

    monkeypatch.setattr(StudentServers, "_ask", ask)
    made = worker(filters=False, teacher=Teacher(refuses=True))
    made.llm_client = None
    made.rollout_config = SimpleNamespace(response_length=3)
    made.prompts = SimpleNamespace(student=lambda row: [8, 9])

    async def postprocess(self: Any, output: Any, validate: bool, **row: Any) -> str:
        seen.update(output=output, row=row)
        return "stored"

    monkeypatch.setattr(VERL, "_agent_loop_postprocess", postprocess)
    row = {fields.PROMPT: 7, fields.TEMPERATURE: 1.0, fields.BY_TEACHER: False, fields.TARGET: [4, 5, 6]}
    call = made._run_agent_loop({}, {"validate": True}, agent_name="", uid="u", session_id=0, global_steps=4, **row)
    assert asyncio.run(call) == "stored"
    assert (seen["sequence"], seen["topk"], seen["purpose"]) == ([8, 9, 4, 5, 6], 0, "estimate")
    assert seen["output"].reward_score == pytest.approx(-3.0)
    assert fields.TARGET not in seen["row"]


def test_a_mixed_group_is_scored_whole() -> None:
    made = worker(filters=True, teacher=Teacher())
    run(made, [1.0, 0.0, 0.0])
    assert made.teacher.asked == 3
    assert made.report.outcomes == [Outcome(7, successes=1, responses=3, teacher_tokens=3.0 * SEQUENCE)]


def test_a_uniform_group_is_scored_where_no_filter_is_on() -> None:
    made = worker(filters=False, teacher=Teacher())
    run(made, [1.0, 1.0])
    assert made.teacher.asked == 2
    assert made.report.outcomes == [Outcome(7, teacher_tokens=2.0 * SEQUENCE)]


def test_a_reward_that_fails_and_a_teacher_that_refuses_are_reported() -> None:
    made = worker(filters=True, teacher=Teacher())
    ended = run(made, [ValueError("no such answer"), 1.0, 1.0])
    assert isinstance(ended[0], ValueError)
    assert made.teacher.asked == 2, "verl does not drop what has failed: the others may train"
    assert made.report.errors == ["ValueError: no such answer"]
    (outcome,) = made.report.outcomes
    assert (outcome.error, outcome.dropped, outcome.responses) == ("ValueError: no such answer", False, 2)

    made = worker(filters=False, teacher=Teacher(refuses=True))
    run(made, [1.0, 0.0])
    assert made.report.errors == ["ConnectionError: refused"] * 2
    assert [outcome.error for outcome in made.report.outcomes] == ["ConnectionError: refused"]
    assert not made.visits


def test_a_hopeless_prompt_is_scored_by_the_student_and_counted_so() -> None:
    made = worker(filters=False, teacher=Teacher(), student=Teacher())
    run(made, [0.0, 0.0], by_student=True)
    assert (made.teacher.asked, made.student.asked) == (0, 2)
    run(made, [0.0, 0.0], by_student=True, weight=0.0)
    assert made.student.asked == 2


def test_an_error_of_another_process_is_said_in_its_own_words() -> None:
    error = ray.exceptions.RayTaskError("compute_score", "a long way", ValueError("no such answer"))
    assert _in_words(error.as_instanceof_cause()) == "ValueError: no such answer"
    assert _in_words(KeyError("x")) == "KeyError: 'x'"


def test_a_row_is_taught_under_the_context_of_its_data_source() -> None:
    made = worker(filters=False, teacher=Teacher())
    made.paced.teacher = TeacherConfig(context={"data_source": {"math": "solution"}, "others": "answer"})
    made.contexts = {name: TeacherContext(name) for name in made.paced.teacher.contexts}
    row = {fields.SELF: False}
    assert made._context({**row, "data_source": "math"}).name == "solution"
    assert made._context({**row, "data_source": np.str_("code")}).name == "answer"
    made.paced.teacher = TeacherConfig(context={"data_source": {"math": "solution"}})
    with pytest.raises(ConfigError, match=r"no context for rows of data_source=code, only for math"):
        made._context({**row, "data_source": "code"})
    made.paced.teacher = TeacherConfig(context={"math": "solution", "code": "answer"})
    assert made._context({**row, "data_source": "code"}).name == "answer", "there the column names a teacher"
