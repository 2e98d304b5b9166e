"""Estimates pass rates inside a run, with the rollout servers and the reward that the run trains with.

Prompts go through verl's validation path (no teacher is asked), ``samples`` times each at the given temperature.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import transfer_queue as tq
from tensordict import TensorDict
from tqdm import tqdm
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from paced_verl import fields
from paced_verl.pacing.pass_rates import PassRateTable, is_correct
from paced_verl.run.sessions import sessions

PARTITION = "val"


def correct_of_row(rows: TensorDict, threshold: float) -> list[float]:
    """1.0 where a row's response is correct: verl's ``acc`` if the reward gives it, else the reward, ≥ threshold.

    Args:
        rows: With ``rm_scores`` (jagged, B × tokens) and ``extra_fields`` (B dicts).
    """
    scores = [float(score.sum()) for score in rows["rm_scores"].unbind()]
    extras = [getattr(extra, "data", extra).get("reward_extra_info") or {} for extra in rows["extra_fields"]]
    return [float(is_correct(score, extra, threshold)) for score, extra in zip(scores, extras, strict=True)]


def estimate_pass_rates(
    table: PassRateTable,
    prompts: Any,
    *,
    samples: int,
    temperature: float,
    threshold: float,
    chunk: int,
    step: int,
    agent_loop_manager: Any,
    replay_buffer: Any,
) -> None:
    """Sample every prompt and count its correct responses into ``table``.

    Two chunks are in flight, so that the servers stay busy while the slowest responses of one are finished.

    Args:
        table: Empty; one row a prompt.
        prompts: The training set, rows numbered by ``paced_prompt``.
        samples: Responses a prompt (K).
        temperature: Sampling temperature (top-p and top-k are off).
        threshold: A response is correct from this score on.
        chunk: Prompts handed to the servers at once.
        step: The training step, for the table's ``last_seen``.
        agent_loop_manager: verl's, to dispatch to.
        replay_buffer: verl's, to collect from.
    """
    chunks = [range(start, min(start + chunk, len(prompts))) for start in range(0, len(prompts), chunk)]
    waiting = [_submit(prompts, chunks[0], samples, temperature, step, agent_loop_manager)]
    with tqdm(total=len(prompts), desc="Pass rates", unit="prompt") as progress:
        for following in [*chunks[1:], None]:
            if following is not None:
                waiting.append(_submit(prompts, following, samples, temperature, step, agent_loop_manager))
            size = waiting.pop(0)
            batch, _ = replay_buffer.sample(global_steps=step, partition_id=PARTITION, batch_size=size)
            _count(table, batch, threshold, step)
            progress.update(size)


def _submit(prompts: Any, chunk: Sequence[int], samples: int, temperature: float, step: int, manager: Any) -> int:
    """Dispatch a chunk as validation rows, as ``PPOTrainer._validate`` does; returns its number of prompts."""
    rows = collate_fn([prompts[i] for i in chunk])
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


def _count(table: PassRateTable, batch: KVBatchMeta, threshold: float, step: int) -> None:
    """Count a chunk's rollouts and clear its rows.

    Raises:
        RuntimeError: All of them failed, and so did all before.
    """
    keys = [key for key, last in zip(batch.keys, sessions(batch.keys).last, strict=True) if last]
    if not keys:
        if not table.samples.any():
            raise RuntimeError("Pass rates cannot be estimated: not one response of the first prompts was scored.")
        return
    names = [fields.PROMPT, "rm_scores", "extra_fields"]
    rows = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=names)
    prompts = np.array([int(getattr(prompt, "data", prompt)) for prompt in rows[fields.PROMPT]])
    correct = np.asarray(correct_of_row(rows, threshold))
    table.observe(prompts, correct, np.ones_like(correct), step=step)
    tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
