"""What the trainer does to a step's rows and with what workers report, without a launch."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from paced_verl import fields
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.run.outcomes import Outcome, RefillLimit, Report
from paced_verl.training import trainer
from paced_verl.training.trainer import PacedTrainer, RefillError
from tests.queue import Queue


class Verl:
    """verl's side of the methods that the mixin extends."""

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        return batch

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        return num_prompts


class Trainer(PacedTrainer, Verl):
    """Of a run with no more than a test needs of it."""

    def __init__(self, **attributes: Any):
        self.__dict__.update(attributes)


def reporting(*reports: Report) -> SimpleNamespace:
    """An agent-loop manager that says this, one report a time, and then nothing."""
    left = list(reports)
    return SimpleNamespace(pop_report=lambda: left.pop(0) if left else Report())


def test_advantages_of_rows_without_a_task_reward_become_0(monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = [torch.tensor([0.5, 0.5, 0.5]), torch.tensor([-1.0]), torch.tensor([2.0, 2.0])]
    tasks = [1.0, 0.0, 0.0]
    rows = {
        f"a_{i}_0": {"advantages": advantage, fields.TASK: torch.tensor([task])}
        for i, (advantage, task) in enumerate(zip(advantages, tasks, strict=True))
    }
    queue = Queue(rows)
    queue.replace(monkeypatch, trainer)
    Trainer(paced=SimpleNamespace(route=None))._compute_advantage(queue.batch, {})
    assert [row["advantages"].tolist() for row in rows.values()] == [a.tolist() for a in advantages]
    Trainer(paced=SimpleNamespace(route=object()))._compute_advantage(queue.batch, {})
    assert [row["advantages"].tolist() for row in rows.values()] == [[0.5, 0.5, 0.5], [0.0], [0.0, 0.0]]


def test_a_prompt_weighs_the_same_with_fewer_responses_whatever_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "a_3_0", "b_0_0"]  # four sessions, one of two outputs; and one
    queue = Queue({key: {fields.WEIGHT: torch.tensor([0.5])} for key in keys})
    queue.replace(monkeypatch, trainer)
    run = Trainer(config=OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 2}}}))
    run._size_to(queue.batch)
    assert run.config.actor_rollout_ref.rollout.n == 4
    assert [row[fields.WEIGHT].item() for row in queue.rows.values()] == [0.5] * 5 + [2.0]


def learning(report: Report, filters: bool, route: Any = None) -> Trainer:
    """A trainer that is about to learn from a step of its only stage."""
    table = PassRateTable(4)
    sampler = SimpleNamespace(update=lambda prompts: None, metrics=lambda step: {})
    return Trainer(
        config=OmegaConf.create({"algorithm": {"filter_groups": {"enable": filters}}}),
        paced=SimpleNamespace(pass_rate=SimpleNamespace(threshold=0.5, from_training=True), route=route),
        schedule=SimpleNamespace(stages=[SimpleNamespace(responses="student")]),
        stage=SimpleNamespace(index=0),
        state=SimpleNamespace(table=table, sampler=sampler, targets={}),
        global_steps=1,
        agent_loop_manager=reporting(report),
        _refills=RefillLimit(100, 100),
        _report=Report(),
        _step_totals=Counter(),
        _pending_metrics={},
    )


def rollout(prompt: int, reward: float, weight: float = 1.0, task: float = 1.0, **teacher: float) -> dict[str, Any]:
    """A row as it comes back."""
    row = {
        fields.PROMPT: torch.tensor([prompt]),
        fields.STAGE: torch.tensor([0]),
        fields.WEIGHT: torch.tensor([weight]),
        fields.TASK: torch.tensor([task]),
        fields.TEACHER: torch.zeros(len(fields.TEACHER_NAMES)),
        "rm_scores": torch.tensor([0.0, reward]),
        "responses": torch.tensor([1, 2]),
        "extra_fields": {"reward_extra_info": {}},
        "raw_prompt": [{"role": "user", "content": "?"}],
    }
    fields.count(row, **teacher)
    return row


def test_a_session_is_one_rollout_and_its_teacher_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "a_0_0": rollout(2, 1.0, tokens=10),
        "a_0_1": rollout(2, 1.0, tokens=10),  # verl copies the reward, and we the teacher's columns
        "a_1_0": rollout(2, 0.0, tokens=7),
    }
    queue = Queue(rows)
    queue.replace(monkeypatch, trainer)
    run = learning(Report(["ValueError: no"]), filters=False)
    run._learn_from(queue.batch, {})
    assert run.state.table.samples.tolist() == [0, 0, 2, 0]
    assert run.state.table.successes.tolist() == [0, 0, 1, 0]
    assert run._step_totals["paced/teacher/tokens"] == 17
    assert run._step_totals["paced/rollout/failed"] == 1


def test_under_dapos_filter_every_group_counts_whether_or_not_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue({"a_0_0": rollout(2, 1.0), "a_1_0": rollout(2, 0.0)})
    queue.replace(monkeypatch, trainer)
    outcomes = [
        Outcome(2, successes=1, responses=2),
        Outcome(0, successes=0, responses=2, dropped=True, teacher_tokens=3.0),
        Outcome(1, successes=2, responses=2, dropped=True),
        Outcome(3, error="ValueError: no"),
    ]
    run = learning(Report([], outcomes), filters=True)
    run._learn_from(queue.batch, {})
    assert run.state.table.samples.tolist() == [2, 2, 2, 0]
    assert run.state.table.successes.tolist() == [0, 2, 1, 0]
    assert run._step_totals["paced/teacher/tokens_dropped"] == 3


def test_routed_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "a_0_0": rollout(0, 0.0, task=0.0, self_taught=1),
        "b_0_0": rollout(1, 1.0, weight=0.0, task=0.0),
        "c_0_0": rollout(2, 1.0),
    }
    queue = Queue(rows)
    queue.replace(monkeypatch, trainer)
    run = learning(Report(), filters=False, route=object())
    run._learn_from(queue.batch, {})
    assert (run._step_totals["paced/route/no_task"], run._step_totals["paced/route/self_taught"]) == (2, 1)


def test_prompts_are_not_replaced_for_ever() -> None:
    failed = Report(["OSError: refused"] * 2, [Outcome(0, error="OSError: refused")] * 2)
    run = Trainer(agent_loop_manager=reporting(failed, failed), _refills=RefillLimit(4, 100), _report=Report())
    assert run._add_prompts_to_generate(2) == 2
    with pytest.raises(RefillError, match=r"4 prompts in a row failed.*OSError: refused") as ended:
        run._add_prompts_to_generate(2)
    assert run._cause(ended.value) == str(ended.value)
    assert run._cause(ValueError("no row is left")) == "OSError: refused", "what went wrong in rollouts came first"
    assert Trainer(agent_loop_manager=reporting(), _refills=run._refills, _report=Report())._cause(KeyError()) is None


def test_the_limit_follows_the_configuration() -> None:
    config = OmegaConf.create(
        {
            "data": {"train_batch_size": 64},
            "trainer": {"v1": {"colocate_async": {"num_warmup_batches": 0.5}}},
            "algorithm": {"filter_groups": {"enable": True, "max_num_gen_batches": 3}},
        }
    )
    limit = Trainer(config=config, base_mode="colocate_async")._refill_limit()
    assert (limit.most_failed, limit.most_dropped) == (192, 192)
    limit = Trainer(config=config, base_mode="sync")._refill_limit()
    assert limit.most_failed == 128


def test_a_row_is_scaled_by_its_factor() -> None:
    field = torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    scaled = fields.scaled(field, torch.tensor([0.0, 2.0]))
    np.testing.assert_array_equal(scaled.values(), [0, 0, 2, 2, 2])
