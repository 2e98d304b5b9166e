"""What a row carries between driver, rollout workers and actor: the only way workers are told what to do.

From the trainer to the agent loop, on a training prompt:

``PROMPT``         position in the training set
``STAGE``          which stage of the schedule
``RESPONSES``      ``student`` or ``teacher``
``MIX``            share of the divergence that the stage's divergence turns into
``WEIGHT``         factor of the row's divergence in the loss; the teacher is not asked about rows of weight 0
``TASK``           factor of the row's task advantage: 0 where routing gives it no task reward
``SELF``           whether the student's own weights are the teacher, under the route's context
``SESSIONS``       responses to the prompt in this step
``GROUP_WEIGHTS``  what ``WEIGHT`` becomes with 0, 1, … correct responses beside this one, or ``None``: it stays
``TARGET``         stored teacher response (token ids; empty: none could be had), or ``None``: the teacher writes one

and on a prompt that is measured, ``TEMPERATURE`` and ``BY_TEACHER``: whether it is the teacher that responds; and where
the student is to read a response, ``TARGET``: then its score is the mean log-probability of that response's tokens.
Rows go on to the actor, and back to the driver, with

``PROMPT``, ``STAGE``           (B, 1) int64
``WEIGHT``, ``MIX``, ``TASK``   (B, 1) float32
``TEACHER``                     (B, 7) float32: what was asked of the teacher, see ``TEACHER_NAMES``
``TEACHER_PROMPT``              jagged (B, tokens) int64: the teacher's prompt, for a teacher in the trainer's workers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

PROMPT = "paced_prompt"
STAGE = "paced_stage"
RESPONSES = "paced_responses"
MIX = "paced_mix"
WEIGHT = "paced_weight"
TASK = "paced_task"
SELF = "paced_self"
SESSIONS = "paced_sessions"
GROUP_WEIGHTS = "paced_group_weights"
TARGET = "paced_target"
TEMPERATURE = "paced_temperature"
BY_TEACHER = "paced_by_teacher"
TEACHER = "paced_teacher"
TEACHER_PROMPT = "paced_teacher_prompt"

TEACHER_NAMES = ("tokens", "seconds", "gave_up", "tokens_saved", "no_context", "self_taught", "tries")
"""Columns of ``TEACHER``: tokens the teacher read and wrote; seconds it took; 1 if no response could be had; tokens it
did not have to read, because the row weighs nothing; 1 if its context needed a correct rollout and there was none; 1 if
routing had the student's own servers score it; responses that the teacher wrote until one was kept."""


def per_row(field: torch.Tensor) -> torch.Tensor:
    """A field as (B, width): TransferQueue hands rows of one width back as a jagged tensor."""
    return field.values().view(field.shape[0], -1) if field.is_nested else field


def scaled(field: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Each row of a jagged field (B, tokens) times its factor (B,)."""
    rows = [row * by for row, by in zip(field.unbind(), factor, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def count(row: Mapping[str, Any], **amounts: float) -> None:
    """Add to a row's ``TEACHER`` columns, by name."""
    for name, amount in amounts.items():
        row[TEACHER][TEACHER_NAMES.index(name)] += amount
