"""What a row carries between driver, rollout workers and actor: the only way workers are told what to do.

From the trainer to the agent loop, on a training prompt:

``PROMPT``     position in the training set
``STAGE``      which stage of the schedule
``RESPONSES``  ``student`` or ``teacher``
``WEIGHT``     factor of the row in the loss; the teacher is not asked about rows of weight 0
``TARGET``     stored teacher response (token ids; empty: none could be had), or ``None``: the teacher server writes one

and on a prompt whose pass rate is estimated, ``TEMPERATURE``. Rows go on to the actor, and back to the driver, with

``PROMPT``, ``STAGE``  (B, 1) int64
``WEIGHT``             (B, 1) float32
``TEACHER``            (B, 3) float32: tokens the teacher read and wrote, seconds, 1 if no response could be had
"""

from __future__ import annotations

import torch

PROMPT = "paced_prompt"
STAGE = "paced_stage"
RESPONSES = "paced_responses"
WEIGHT = "paced_weight"
TARGET = "paced_target"
TEMPERATURE = "paced_temperature"
TEACHER = "paced_teacher"


def per_row(field: torch.Tensor) -> torch.Tensor:
    """A field as (B, width): TransferQueue hands rows of one width back as a jagged tensor."""
    return field.values().view(field.shape[0], -1) if field.is_nested else field
