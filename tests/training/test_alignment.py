"""Alignment within a run: the servers are tables whose success is known, everything else is real."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from paced_verl.checks.alignment import alignment_problems
from paced_verl.config import AlignmentConfig, PacedConfig
from paced_verl.config.wiring import wire
from paced_verl.forcing.inputs import Inputs
from paced_verl.forcing.questions import Teacher
from paced_verl.launch.plan import Plan
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.servers import Servers
from paced_verl.training.alignment import PREFIX, Aligning, metrics_of
from tests.checks.test_checks import NO_MODEL, ON_POLICY, config_of, folder, problem_of  # noqa: F401
from tests.forcing.test_run import MODELS, TEACHERS, SamePrompt, Table, judge, measurement

KEY = f"{PREFIX}/model/none/reverse_kl"


def aligning(out: Path, judged: Any = judge) -> tuple[Aligning, Table, list[str]]:
    like = measurement(out / "unused", rollouts=12, nodes=6, visits=20, budget={"rollouts": 5000})
    student, said = Table(MODELS), []
    inputs = Inputs(
        settings=like.settings,
        questions=list(like.questions),
        teachers=[Teacher("model/none", "model", TeacherContext("none"))],
        prompts=SamePrompt(),  # type: ignore[arg-type]
        judge=Judged(judged),  # type: ignore[arg-type]
        policy=like.student.policy,
        vocabulary=like.vocabulary,
        seed=0,
        names={"seed": 0},
        solution_key="solution",
        too_long=[],
    )
    servers = Servers(student, Table(TEACHERS))  # type: ignore[arg-type]
    return Aligning(inputs, servers, out / "run", said.append), student, said


class Judged:
    tokenizer = SimpleNamespace(decode=str)

    def __init__(self, judged: Any):
        self.judged = judged

    def __call__(self, row: Any, tokens: Any) -> Any:
        return self.judged(row, tokens)


def test_what_is_logged_is_what_the_tables_say_and_every_step_has_its_own(tmp_path: Path) -> None:
    run, student, _ = aligning(tmp_path)
    metrics = run.after(4)
    numbers = json.loads((tmp_path / "run" / "step_4" / "alignment.json").read_text())
    one = next(one for one in numbers["teachers"] if one["teacher"] == "model/none")
    assert metrics[f"{KEY}/cosine"] == one["aggregate"]["value"]
    assert metrics[f"{KEY}/low"] == one["aggregate"]["low"] < one["aggregate"]["high"] == metrics[f"{KEY}/high"]
    assert metrics[f"{KEY}/reliability"] == one["reliability"]
    (outcome,) = (each for each in numbers["outcomes"] if each["teacher"] == "model/none")
    assert metrics[f"{KEY}/correct"] == outcome["correct"]["value"]
    assert metrics[f"{KEY}/wrong"] == outcome["wrong"]["value"]
    assert f"{PREFIX}/sharpen/reverse_kl/cosine" in metrics, "teachers that know nothing stand beside"
    assert metrics[f"{PREFIX}/nodes"] == numbers["nodes"]["scored"] > 0
    assert metrics[f"{PREFIX}/rollouts"] == numbers["rollouts"]["free"] + numbers["rollouts"]["forced"]
    assert all(math.isfinite(value) for value in metrics.values())

    asked = student.asked
    run.after(8)
    assert student.asked > asked + 6 * 12, "the weights are others: nothing is taken over"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"step_4", "step_8"}
    assert (tmp_path / "run" / "step_8" / "scores.parquet").exists()


def test_what_an_attempt_before_has_left_is_measured_anew(tmp_path: Path) -> None:
    run, student, _ = aligning(tmp_path)
    run.after(4)
    asked = student.asked
    run.after(4)
    assert student.asked > asked + 6 * 12
    parts = (tmp_path / "run" / "step_4" / "rollouts").iterdir()
    free = sum(row["forced"] < 0 for part in parts for row in pq.read_table(part).to_pylist())
    assert free == 6 * 12, "of these weights alone"


def test_a_student_that_has_mastered_the_questions_ends_no_run(tmp_path: Path) -> None:
    run, _, said = aligning(tmp_path, judged=lambda row, tokens: ("", True))
    metrics = run.after(4)
    assert metrics[f"{PREFIX}/nodes"] == 0
    assert metrics[f"{PREFIX}/rollouts"] == 6 * 12
    assert not [name for name in metrics if name.endswith("cosine")]
    assert "All of 72 free responses were correct" in said[-1]


def test_what_a_server_dies_of_does(tmp_path: Path) -> None:
    def dies(row: Any, tokens: Any) -> Any:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        aligning(tmp_path, judged=dies)[0].after(4)


def test_numbers_that_are_not_known_are_not_logged() -> None:
    unknown = {"value": math.nan, "low": math.nan, "high": math.nan}
    teacher = {"teacher": "t", "divergence": "d", "aggregate": unknown, "reliability": math.nan}
    numbers = {"nodes": {"scored": 1}, "teachers": [teacher], "outcomes": []}
    assert metrics_of(numbers) == {f"{PREFIX}/nodes": 1.0}


EVERY = ["paced.alignment.every_steps=2", "paced.alignment.questions=3", "paced.alignment.budget.rollouts=100"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.v1.trainer_mode=paced_colocate_async"], ["trainer_mode=paced_colocate_async", "Use paced_sync"]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=reference", "paced.teacher.context=solution"],
         ["backend=reference is an engine", "server or student"]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=student", "paced.teacher.context=solution"],
         ["contexts=['none'] leaves no teacher"]),
        (["paced.alignment.budget.rollouts=47"], ["rollouts=47 does not pay", "are 48"]),
        (["actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"], ["one turn", "tool_agent"]),
        (["paced.alignment.contexts=[proof]"], ["there is no such file"]),
        (["paced.alignment.contexts=[solution]", "paced.teacher.solution_key=proof"],
         ["no field extra_info.proof", "paced.alignment.contexts=solution shows it"]),
        (["actor_rollout_ref.rollout.max_model_len=64"], ["rollout.max_model_len=64 is too short", "65 or more"]),
    ],
)  # fmt: skip
def test_a_run_that_cannot_measure_is_refused_by_name(folder: Path, overrides: list[str], words: list[str]) -> None:  # noqa: F811
    message = problem_of(config_of(folder, *EVERY, *overrides))
    for word in words:
        assert word in message


def test_nothing_is_asked_of_a_run_that_does_not_measure(folder: Path) -> None:  # noqa: F811
    config = config_of(folder, "trainer.v1.trainer_mode=paced_colocate_async")
    paced = PacedConfig.parse(config.paced)
    assert paced.alignment.every_steps is None is AlignmentConfig().every_steps
    assert list(alignment_problems(config, paced)) == []


def test_the_students_servers_say_enough_and_the_plan_says_what_it_costs(folder: Path) -> None:  # noqa: F811
    config = config_of(folder, *EVERY, "paced.alignment.rollouts=10", "paced.alignment.contexts=[none,solution]")
    plan = str(Plan.of(config))
    assert "alignment: after every 2 steps, 3 questions, 30 free responses, and up to 100 continuations or 30" in plan
    wire(config, PacedConfig.parse(config.paced), "sync")
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs == 64
    off = config_of(folder)
    wire(off, PacedConfig.parse(off.paced), "sync")
    assert "max_logprobs" not in off.actor_rollout_ref.rollout.engine_kwargs.vllm
    assert "alignment:" not in str(Plan.of(config_of(folder)))
