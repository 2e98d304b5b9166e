"""Measures how the student does, with the rollout servers and the reward that the run trains with.

Prompts go through verl's validation path (no teacher is asked), each as often as asked for.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import transfer_queue as tq
from tqdm import tqdm
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from paced_verl import fields
from paced_verl.pacing.protocol import IntArray
from paced_verl.run.measure import Counts
from paced_verl.run.sessions import sessions
from paced_verl.training.rows import correct_rows

PARTITION = "val"


def measure(
    prompts: Any,
    which: IntArray,
    *,
    samples: int,
    temperature: float,
    threshold: float,
    chunk: int,
    step: int,
    agent_loop_manager: Any,
    replay_buffer: Any,
) -> Counts:
    """Sample prompts and count their correct responses.

    Two chunks are in flight, so that the servers stay busy while the slowest responses of one are finished.

    Args:
        prompts: A data set, rows numbered by ``paced_prompt``.
        which: Positions in it, (P,), each once.
        samples: Responses a prompt (K).
        temperature: Sampling temperature (top-p and top-k are off).
        threshold: A response is correct from this score on.
        chunk: Prompts handed to the servers at once.
        step: The training step.
        agent_loop_manager: verl's, to dispatch to.
        replay_buffer: verl's, to collect from.

    Raises:
        RuntimeError: Not one response of the first chunks was scored.
    """
    tally = _Tally(which)
    chunks = [which[start : start + chunk] for start in range(0, len(which), chunk)]
    waiting = [_submit(prompts, part, samples, temperature, step, agent_loop_manager) for part in chunks[:1]]
    with tqdm(total=len(which), desc="Pass rates", unit="prompt") as progress:
        for following in [*chunks[1:], *[None] * bool(waiting)]:
            if following is not None:
                waiting.append(_submit(prompts, following, samples, temperature, step, agent_loop_manager))
            size = waiting.pop(0)
            batch, _ = replay_buffer.sample(global_steps=step, partition_id=PARTITION, batch_size=size)
            tally.add(batch, threshold)
            progress.update(size)
    return tally.counts


def _submit(prompts: Any, chunk: IntArray, samples: int, temperature: float, step: int, manager: Any) -> int:
    """Dispatch a chunk as validation rows, as ``PPOTrainer._validate`` does; returns its number of prompts."""
    rows = collate_fn([prompts[i] for i in chunk.tolist()])
    rows["uid"] = np.array([str(uuid.uuid4()) for _ in chunk], dtype=object)
    batch = tu.get_tensordict(rows)
    tu.assign_non_tensor_data(batch, "global_steps", step)
    tu.assign_non_tensor_data(batch, "validate", True)
    tu.assign_non_tensor_stack(batch, "__rollout_n__", [samples] * len(batch))
    tu.assign_non_tensor_stack(batch, fields.TEMPERATURE, [temperature] * len(batch))
    tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in range(len(batch))]
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id=PARTITION, tags=tags)
    manager.generate_sequences(batch)
    return len(batch)


class _Tally:
    """Counts rollouts, chunk by chunk."""

    def __init__(self, which: IntArray):
        self.place = {prompt: i for i, prompt in enumerate(which.tolist())}
        zeros = (np.zeros(len(which), np.int64) for _ in range(3))
        self.counts = Counts(which, *zeros)

    def add(self, batch: KVBatchMeta, threshold: float) -> None:
        """Count a chunk's rollouts and clear its rows."""
        both = sessions(batch.keys)
        if not both.last.any():
            if not self.counts.samples.any():
                raise RuntimeError("Pass rates cannot be estimated: not one response of the first prompts was scored.")
            return
        names = [fields.PROMPT, "rm_scores", "extra_fields"]
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=PARTITION, select_fields=names)
        place = np.array([self.place[int(getattr(prompt, "data", prompt))] for prompt in rows[fields.PROMPT]])
        # Scores are one a token. Every output of a session was generated; the last one has its reward.
        np.add.at(self.counts.tokens, place, [len(score) for score in rows["rm_scores"].unbind()])
        np.add.at(self.counts.samples, place[both.last], 1)
        np.add.at(self.counts.successes, place[both.last], correct_rows(rows, threshold)[both.last])
        tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
