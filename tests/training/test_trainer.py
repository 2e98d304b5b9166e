"""What the trainer does to a step's rows and with what workers report, without a launch."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from paced_verl import fields
from paced_verl.pacing.schedule import Schedule
from paced_verl.run.outcomes import Outcome, RefillLimit, Report
from paced_verl.run.state import Learnt
from paced_verl.run.tokens import Tokens
from paced_verl.training import trainer
from paced_verl.training.trainer import PacedTrainer, RefillError
from tests.queue import Queue


class Verl:
    """verl's side of the methods that the mixin extends."""

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        return batch

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        return num_prompts

    def fit(self, agent_loop_manager: Any) -> None:
        if self.fails is not None:  # type: ignore[attr-defined]
            raise self.fails  # type: ignore[attr-defined]

    def _compute_metrics(self, batch: Any, metrics: dict) -> None:
        pass


class Trainer(PacedTrainer, Verl):
    """Of a run with no more than a test needs of it."""

    def __init__(self, **attributes: Any):
        self._report, self._tokens = Report(), Tokens()
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


def test_prompts_are_not_replaced_for_ever() -> None:
    failed = Report(["OSError: refused"] * 2, [Outcome(0, error="OSError: refused")] * 2)
    run = Trainer(
        agent_loop_manager=reporting(failed, failed), _refills=RefillLimit(4, 100), _report=Report(), _tokens=Tokens()
    )
    assert run._add_prompts_to_generate(2) == 2
    with pytest.raises(RefillError, match=r"4 prompts in a row failed.*OSError: refused") as ended:
        run._add_prompts_to_generate(2)
    assert run._cause(ended.value) == str(ended.value)
    assert run._cause(ValueError("no row is left")) == "OSError: refused", "what went wrong in rollouts came first"
    assert Trainer(agent_loop_manager=reporting(), _refills=run._refills)._cause(KeyError()) is None


def test_a_logged_step_has_all_tokens_since_the_one_before() -> None:
    spent = [Report(), Report()]
    spent[0].tokens.add("student", 3, 2)
    spent[1].tokens.add("validation", 5, 1)
    amounts = {"paced/pass_rate/measured": 4.0}
    state = SimpleNamespace(rates=SimpleNamespace(pop_amounts=lambda: amounts))
    run = Trainer(
        agent_loop_manager=reporting(*spent),
        _refills=RefillLimit(4, 100),
        state=state,
        _aligned={},
    )
    run._hear()  # in the step
    metrics = {"paced/pass_rate/measured": 8.0}
    run._compute_metrics(None, metrics)
    assert metrics["paced/tokens/student/prompt"] == 3
    assert metrics["paced/tokens/validation/generated"] == 1
    assert metrics["paced/pass_rate/measured"] == 12, "of the estimate after the last step, too"
    run._compute_metrics(None, metrics)
    assert metrics["paced/tokens/student/prompt"] == 0


@pytest.mark.parametrize(
    ("fails", "heard", "cause"),
    [
        (None, [], None),
        (KeyError("rows"), [], "KeyError: 'rows'"),
        (ValueError("no row is left"), ["OSError: refused"], "OSError: refused"),
    ],
)
def test_the_record_says_how_the_run_ended(
    fails: Exception | None, heard: list[str], cause: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = SimpleNamespace(find_dead=lambda: None)
    monkeypatch.setattr(trainer, "EngineWatch", lambda *_, **__: nullcontext(watch))
    monkeypatch.setattr(trainer, "Measuring", lambda *_, **__: None)
    loops = reporting(Report(heard))
    loops.agent_loop_workers = []
    settings = {"default_local_dir": str(tmp_path), "logger": "console"}
    run = Trainer(
        paced=SimpleNamespace(
            targets=SimpleNamespace(file=None),
            pass_rate=SimpleNamespace(temperature=1.0, threshold=0.5),
            alignment=SimpleNamespace(every_steps=None),
        ),
        config=OmegaConf.create({"trainer": settings, "data": {"train_batch_size": 4}}),
        schedule=Schedule.from_ends([1.0], [{"divergence": "forward_kl", "responses": "teacher"}], 8),
        prompts=range(5),
        state=SimpleNamespace(rates=SimpleNamespace(table=SimpleNamespace(fingerprint="f"))),
        global_steps=3,
        replay_buffer=None,
        agent_loop_manager=loops,
        fails=fails,
        _engines=dict,
        _addresses=dict,
        _refills=RefillLimit(4, 100),
        _report=Report(),
    )
    with nullcontext() if fails is None else pytest.raises((KeyError, RuntimeError)):
        run.fit(loops)
    (attempt,) = json.loads((tmp_path / "paced" / "run.json").read_text())["attempts"]
    assert (attempt["after_step"], attempt["cause"]) == (3, cause)
    assert attempt["ended"]


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


class Budget:
    """What a run with a budget asks of who counts its tokens: so many are left, and a step takes so many at most."""

    def __init__(self, left: int, most: int = 100):
        self.ledger, self.most_of_step = SimpleNamespace(left=left), most

    def affordable(self, steps: int) -> bool:
        return steps * self.most_of_step <= self.ledger.left


@pytest.mark.parametrize(("left", "last"), [(99, 7), (100, 8), (199, 8), (200, 20)])
def test_the_step_after_which_a_budget_may_not_pay_for_another_is_the_last(left: int, last: int) -> None:
    run = Trainer(state=SimpleNamespace(allocation=Budget(left)), global_steps=7, total_training_steps=20)
    run._end_in_time()
    assert run.total_training_steps == last


@pytest.mark.parametrize(("left", "total"), [(50, 7), (150, 8), (5000, 20)])
def test_a_run_that_its_budget_has_ended_trains_no_step_when_it_is_launched_again(
    left: int, total: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """verl begins step 8 only if 8 <= total_training_steps, and saves after the step that equals it."""
    (tmp_path / "paced").mkdir()
    monkeypatch.setattr(trainer.resume, "repair_tracker", lambda folder: None)
    monkeypatch.setattr(Verl, "_load_checkpoint", lambda self: None, raising=False)
    monkeypatch.setattr(Verl, "on_train_begin", lambda self: None, raising=False)
    prepared: list[int] = []
    run = Trainer(
        state=SimpleNamespace(allocation=Budget(left), load=lambda folder: None),
        config=OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}}),
        global_steps=7,
        total_training_steps=20,
        train_dataloader=[],
        _paced_folder=lambda resumed: tmp_path / "paced",
        _prepare=prepared.append,
    )
    run._load_checkpoint()
    assert run.total_training_steps == total
    run.global_steps = 8  # as verl's fit sets it before the loop
    run.on_train_begin()
    assert prepared == ([] if total == 7 else [8])


def test_a_step_of_two_updates_logs_sums_and_what_is_true_after_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl logs the mean over a step's updates, which a running total is not."""
    learnt = [Learnt({"paced/budget/trained": total}, {"paced/teacher/tokens": 5.0}) for total in (210.0, 290.0)]

    def step(self: Any, metrics: dict, timing_raw: dict) -> str:
        updates: list[dict] = [{}, {}]
        for update in updates:
            self._balance_batch("batch", update)
        metrics.update({name: np.mean([update[name] for update in updates]) for name in updates[0]})
        return "batch"

    rows = SimpleNamespace(responses_per_prompt=2, weight_factor=lambda: np.ones(2))
    monkeypatch.setattr(trainer, "read_rows", lambda batch, threshold: rows)
    monkeypatch.setattr(Verl, "step", step, raising=False)
    monkeypatch.setattr(Verl, "_balance_batch", lambda self, batch, metrics: batch, raising=False)
    run = Trainer(
        _amounts=defaultdict(float),
        _values={},
        agent_loop_manager=reporting(),
        _refills=RefillLimit(4, 100),
        paced=SimpleNamespace(pass_rate=SimpleNamespace(threshold=0.5)),
        config=OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 1}}}),
        state=SimpleNamespace(learn=lambda rows, report, step: learnt.pop(0)),
        teacher=None,
        global_steps=3,
    )
    metrics: dict[str, float] = {}
    run.step(metrics, {})
    assert metrics["paced/budget/trained"] == 290
    assert metrics["paced/teacher/tokens"] == 10
