"""A step's rows, from verl's queue and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paced_verl import fields
from paced_verl.training import rows
from tests.queue import Queue


def a_row(prompt: int, reward: float, acc: float | None = None, **teacher: float) -> dict[str, Any]:
    """A row as it comes back; rewards are one a token."""
    row = {
        fields.PROMPT: torch.tensor([prompt]),
        fields.STAGE: torch.tensor([1]),
        fields.WEIGHT: torch.tensor([0.5]),
        fields.TASK: torch.tensor([1.0]),
        fields.TEACHER: torch.zeros(len(fields.TEACHER_NAMES)),
        "rm_scores": torch.tensor([0.0, reward]),
        "responses": torch.tensor([prompt, 7]),
        "extra_fields": {"reward_extra_info": {} if acc is None else {"acc": acc}},
        "raw_prompt": [{"role": "user", "content": f"{prompt}?"}],
    }
    fields.count(row, **teacher)
    return row


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue(
        {"a_0_0": a_row(3, 1.0, tokens=5, seconds=0.5), "a_1_0": a_row(3, -1.0, acc=1.0), "b_0_0": a_row(0, 0.2)}
    )
    queue.replace(monkeypatch, rows)
    return queue


def test_rows_are_read_whole(queue: Queue) -> None:
    read = rows.read_rows(queue.batch, threshold=0.5)
    assert list(read.keys) == ["a_0_0", "a_1_0", "b_0_0"]
    assert read.prompts.tolist() == [3, 3, 0]
    assert read.stages.tolist() == [1, 1, 1]
    assert read.correct.tolist() == [True, True, False], "acc says what is correct where the reward gives it"
    assert read.weight.tolist() == [0.5] * 3
    assert read.task.tolist() == [1.0] * 3
    assert read.asked["tokens"].tolist() == [5, 0, 0]
    assert read.asked["seconds"].tolist() == [0.5, 0, 0]
    assert [ids.tolist() for ids in read.responses] == [[3, 7], [3, 7], [0, 7]]
    assert read.messages[2] == [{"role": "user", "content": "0?"}]


def test_weights_are_written_back(queue: Queue) -> None:
    rows.write_weights(queue.batch, np.array([1.0, 2.0, 4.0], np.float32))
    assert [row[fields.WEIGHT].tolist() for row in queue.rows.values()] == [[1.0], [2.0], [4.0]]
    assert rows.read_rows(queue.batch, 0.5).weight.tolist() == [1.0, 2.0, 4.0]
