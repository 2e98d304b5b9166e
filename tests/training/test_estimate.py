"""Counting the rollouts of an estimate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paced_verl import fields
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.training import estimate
from tests.queue import Queue


def row(prompt: int, reward: float, acc: float | None = None) -> dict[str, Any]:
    extra = {} if acc is None else {"acc": acc}
    return {
        fields.PROMPT: prompt,
        "rm_scores": torch.tensor([0.0, reward]),
        "extra_fields": {"reward_extra_info": extra},
    }


def count(monkeypatch: pytest.MonkeyPatch, table: PassRateTable, rows: dict[str, dict[str, Any]]) -> Queue:
    queue = Queue(rows)
    queue.replace(monkeypatch, estimate)
    estimate._count(table, queue.batch, 0.5, step=3)
    return queue


def test_a_session_counts_once_with_its_last_output(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PassRateTable(3)
    rows = {
        "a_0_0": row(2, 1.0),
        "a_0_1": row(2, 0.0),  # of one conversation; this is its end
        "a_1_0": row(2, 1.0),
        "b_0_0": row(0, 0.0, acc=1.0),  # the reward is shaped; acc says what is correct
    }
    queue = count(monkeypatch, table, rows)
    assert table.samples.tolist() == [1, 0, 2]
    assert table.successes.tolist() == [1, 0, 1]
    assert table.last_seen.tolist() == [3, -1, 3]
    assert sorted(queue.cleared) == sorted(rows)


def test_an_estimate_whose_responses_all_fail_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PassRateTable(3)
    with pytest.raises(RuntimeError, match="not one response of the first prompts was scored"):
        count(monkeypatch, table, {})
    table.observe([0], [0], [1], step=1)
    count(monkeypatch, table, {})  # a later chunk may fail
