"""Between verl's queue and :class:`~paced_verl.run.step_rows.StepRows`: one read, and one field written back."""

from __future__ import annotations

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from paced_verl import fields
from paced_verl.pacing.pass_rates import is_correct
from paced_verl.run.step_rows import StepRows

_NAMES = (fields.PROMPT, fields.STAGE, fields.WEIGHT, fields.TASK, fields.TEACHER)
_VERLS = ("rm_scores", "responses", "extra_fields", "raw_prompt")


def read_rows(batch: KVBatchMeta, threshold: float) -> StepRows:
    """The scored rows of a step.

    Args:
        batch: verl's, before padding.
        threshold: A response is correct from this score on.
    """
    rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[*_NAMES, *_VERLS])
    prompts, stages, weight, task = (fields.per_row(rows[name]).view(-1).numpy() for name in _NAMES[:4])
    return StepRows(
        keys=batch.keys,
        prompts=prompts,
        stages=stages,
        correct=correct_rows(rows, threshold),
        weight=weight,
        task=task,
        asked=dict(zip(fields.TEACHER_NAMES, fields.per_row(rows[fields.TEACHER]).numpy().T, strict=True)),
        responses=[response.numpy() for response in rows["responses"].unbind()],
        messages=[getattr(messages, "data", messages) for messages in rows["raw_prompt"]],
    )


def correct_rows(rows: TensorDict, threshold: float) -> np.ndarray:
    """Whether each row's response is correct, bool (B,): verl's ``acc`` if the reward gives it, else the reward.

    Args:
        rows: With ``rm_scores`` (jagged, B × tokens) and ``extra_fields`` (B dicts).
        threshold: Correct from this score on.
    """
    scores = [float(score.sum()) for score in rows["rm_scores"].unbind()]
    extras = [getattr(extra, "data", extra).get("reward_extra_info") or {} for extra in rows["extra_fields"]]
    return np.array([is_correct(score, extra, threshold) for score, extra in zip(scores, extras, strict=True)], bool)


def write_weights(batch: KVBatchMeta, weight: np.ndarray) -> None:
    """Put other loss weights, float32 (B,), in the place of the rows' own."""
    field = TensorDict({fields.WEIGHT: torch.as_tensor(weight)[:, None]}, batch_size=len(batch))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=field)
