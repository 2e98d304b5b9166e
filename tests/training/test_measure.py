"""Counting the rollouts of a measurement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transfer_queue import KVBatchMeta

from paced_verl import fields
from paced_verl.training import measure, rows
from tests.queue import Queue


def row(
    prompt: int, reward: float, acc: float | None = None, tokens: int = 2, by_teacher: bool = False
) -> dict[str, Any]:
    extra = {} if acc is None else {"acc": acc}
    return {
        fields.PROMPT: prompt,
        fields.BY_TEACHER: by_teacher,
        "rm_scores": torch.tensor([0.0] * (tokens - 1) + [reward]),
        "extra_fields": {"reward_extra_info": extra},
        "responses": torch.full((tokens,), prompt),
    }


def tally(monkeypatch: pytest.MonkeyPatch, rows: dict[str, dict[str, Any]], which: list[int]) -> tuple[Any, Queue]:
    queue = Queue(rows)
    queue.replace(monkeypatch, measure)
    buffer = SimpleNamespace(sample=lambda **_: (queue.batch, None))
    measuring = measure.Measuring(
        [], temperature=1.0, threshold=0.5, chunk=9, agent_loop_manager=None, replay_buffer=buffer
    )
    monkeypatch.setattr(measure.Measuring, "_submit", lambda self, chunk, *_: len(chunk))
    return measuring.wait_for(np.array(which), samples=2, step=1), queue


def test_a_session_counts_once_with_its_last_output_and_costs_all_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "a_0_0": row(7, 1.0, tokens=3),
        "a_0_1": row(7, 0.0, tokens=4),  # of one conversation; this is its end
        "a_1_0": row(7, 1.0),
        "b_0_0": row(0, 0.0, acc=1.0),  # the reward is shaped; acc says what is correct
    }
    counts, queue = tally(monkeypatch, rows, which=[0, 4, 7])
    assert counts.prompts.tolist() == [0, 4, 7]
    assert counts.samples.tolist() == [1, 0, 2]
    assert counts.successes.tolist() == [1, 0, 1]
    assert counts.tokens.tolist() == [2, 0, 9]
    assert sorted(queue.cleared) == sorted(rows)


def test_a_measurement_whose_responses_all_fail_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="not one response of the student to the first prompts was scored"):
        tally(monkeypatch, {}, which=list(range(16)))
    counting = measure._Tally(np.array([0]), by="student")
    counting.counts.samples[0] = 1
    counting.add([], None, 0.5)  # a later chunk may fail


def test_a_prompt_that_is_measured_alone_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with refresh: draw, where it would end a run that trains without it."""
    counts, _ = tally(monkeypatch, {}, which=[3, 5])
    assert (counts.prompts.tolist(), counts.samples.tolist()) == ([3, 5], [0, 0])


class Servers:
    """Agent loops and replay buffer of verl in one: prompt p is correct where a sample's number is below p."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.queue, self.chunks, self.waiting = Queue({}), [], []
        self.queue.kv_batch_put = lambda **_: None  # type: ignore[method-assign]
        for module in (measure, rows):
            self.queue.replace(monkeypatch, module)

    def generate_sequences(self, batch: Any) -> None:
        prompts = [int(prompt) for prompt in batch[fields.PROMPT]]
        self.chunks.append(prompts)
        keys = []
        by_teacher = [bool(flag) for flag in batch[fields.BY_TEACHER]]
        for uid, prompt, n, by in zip(batch["uid"], prompts, batch["__rollout_n__"], by_teacher, strict=True):
            for session in range(n):
                keys.append(f"{uid}_{session}_0")
                self.queue.rows[keys[-1]] = row(prompt, float(by or session < prompt), by_teacher=by)
                if fields.TARGET in batch:
                    response = batch[fields.TARGET][prompts.index(prompt)]
                    self.queue.rows[keys[-1]]["rm_scores"] = torch.tensor([0.0, -sum(response) / len(response)])
        self.waiting.append(keys)

    def sample(self, batch_size: int, **_: Any) -> tuple[KVBatchMeta, None]:
        keys: list[str] = []
        while batch_size > 0:
            keys += self.waiting.pop(0)
            batch_size = batch_size - len({key.split("_")[0] for key in keys})
        return KVBatchMeta(partition_id="val", keys=keys, tags=[{} for _ in keys]), None


def test_only_the_prompts_that_are_asked_for_are_sampled_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    data = [{fields.PROMPT: i, "index": i} for i in range(10)]
    measuring = measure.Measuring(
        data, temperature=1.0, threshold=0.5, chunk=2, agent_loop_manager=servers, replay_buffer=servers
    )
    counts = measuring.wait_for(np.array([5, 1, 8]), samples=4, step=3)
    assert servers.chunks == [[5, 1], [8]]
    assert counts.prompts.tolist() == [5, 1, 8]
    assert counts.samples.tolist() == [4, 4, 4]
    assert counts.successes.tolist() == [4, 1, 4]
    assert measuring.wait_for(np.array([], int), samples=4, step=3).samples.size == 0


def test_what_is_sent_beside_a_step_is_collected_later_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    data = [{fields.PROMPT: i, "index": i} for i in range(10)]
    measuring = measure.Measuring(
        data, temperature=1.0, threshold=0.5, chunk=2, agent_loop_manager=servers, replay_buffer=servers
    )
    measuring.send(np.array([7, 2, 3]), samples=4, step=5)
    assert measuring.under_way == 5
    with pytest.raises(AssertionError, match="collect what was sent before"):
        measuring.wait_for(np.array([1]), samples=4, step=6)
    counts = measuring.collect()["student"]
    assert servers.chunks == [[7, 2, 3]], "all at once"
    assert (counts.prompts.tolist(), counts.successes.tolist()) == ([7, 2, 3], [4, 2, 3])
    assert measuring.under_way is None
    with pytest.raises(AssertionError, match="nothing was sent"):
        measuring.collect()


def test_what_the_teacher_is_asked_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    data = [{fields.PROMPT: i, "index": i} for i in range(10)]
    measuring = measure.Measuring(
        data, temperature=1.0, threshold=0.5, chunk=2, agent_loop_manager=servers, replay_buffer=servers
    )
    measuring.send(np.array([1, 2]), samples=4, step=5)
    measuring.send(np.array([2]), samples=3, step=5, by="teacher")
    counts = measuring.collect()
    assert (counts["student"].successes.tolist(), counts["student"].samples.tolist()) == ([1, 2], [4, 4])
    assert (counts["teacher"].successes.tolist(), counts["teacher"].samples.tolist()) == ([3], [3])
    assert measuring.wait_for(np.array([4]), 2, step=6, by="teacher").successes.tolist() == [2]
    assert counts["student"].responses == [], "nobody asks for them"
    assert counts["teacher"].responses == [[2, 2]]


def test_of_the_teacher_one_correct_response_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first session's is wrong; of the second prompt all are."""
    rows = {
        "a_0_0": row(7, 0.0, by_teacher=True, tokens=5),
        "a_1_0": row(7, 1.0, by_teacher=True, tokens=3),
        "a_2_0": row(7, 1.0, by_teacher=True, tokens=4),
        "b_0_0": row(2, 0.0, by_teacher=True),
    }
    queue = Queue(rows)
    queue.replace(monkeypatch, measure)
    counting = measure._Tally(np.array([2, 7, 9]), by="teacher")
    names = [*rows["a_0_0"]]
    counting.add(list(rows), queue.kv_batch_get(list(rows), "val", names), 0.5)
    assert counting.counts.responses == [None, [7, 7, 7], None]
    assert counting.counts.successes.tolist() == [0, 2, 0]
    again = counting.counts.take(np.array([2, 1]))
    assert (again.prompts.tolist(), again.responses) == ([9, 7], [None, [7, 7, 7]])


def test_responses_are_read_chunk_by_chunk_and_one_that_fails_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    data = [{fields.PROMPT: i, "index": i} for i in range(10)]
    measuring = measure.Measuring(
        data, temperature=1.0, threshold=0.5, chunk=2, agent_loop_manager=servers, replay_buffer=servers
    )
    found = measuring.likelihood(np.array([5, 1, 8]), [[1, 3], [4], [2, 2, 5]], step=3)
    assert servers.chunks == [[5, 1], [8]]
    assert found == pytest.approx([-2.0, -4.0, -3.0])
    assert not set(servers.queue.rows) - set(servers.queue.cleared)

    def one_fails(batch_size: int, **_: Any) -> tuple[KVBatchMeta, None]:
        keys = servers.waiting.pop(0)[1:]
        return KVBatchMeta(partition_id="val", keys=keys, tags=[{} for _ in keys]), None

    monkeypatch.setattr(servers, "sample", one_fails)
    found = measuring.likelihood(np.array([5, 1, 8]), [[1, 3], [4], [2, 2, 5]], step=3)
    assert np.isnan(found).tolist() == [True, False, True]
