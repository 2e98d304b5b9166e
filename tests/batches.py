"""Micro-batches as verl hands them to a loss: packed jagged tensors, global counts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import DistillationLossConfig

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.pacing.schedule import Schedule

VOCAB, TOPK = 23, 5

SCHEDULE = Schedule.from_ends(
    [0.5, 1.0],
    [
        {"divergence": "forward_kl", "responses": "teacher"},
        {"divergence": "reverse_kl", "responses": "student"},
    ],
    10,
)


PACED = PacedConfig.parse(
    {"teacher": {"topk": TOPK}, "schedule": [{"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}]}
)


@dataclass(frozen=True)
class Row:
    """One row of a batch."""

    prompt: torch.Tensor
    response: torch.Tensor
    mask: torch.Tensor
    teacher_ids: torch.Tensor
    teacher_logprobs: torch.Tensor
    stage: int
    weight: float
    mix: float = 0.0
    teacher_tail: torch.Tensor | None = None
    """(prompt + response,) log-probabilities, where the teacher says them."""


def make_rows(count: int, seed: int = 0, stages: Sequence[int] = (0, 1), full_mask: bool = False) -> list[Row]:
    """Rows of different lengths, with masked tokens (tool output), zero weights and several stages."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        prompt = torch.randint(VOCAB, (2 + i % 3,), generator=generator)
        response = torch.randint(VOCAB, (3 + (2 * i) % 5,), generator=generator)
        length = len(prompt) + len(response)
        log_probs, ids = torch.log_softmax(torch.randn(length, VOCAB, generator=generator), -1).topk(TOPK)
        mask = torch.ones(len(response), dtype=torch.int64)
        if not full_mask and i % 3 == 1:
            mask[1] = 0
        weight = 0.0 if not full_mask and i % 4 == 3 else float(torch.rand((), generator=generator)) + 0.2
        rows.append(Row(prompt, response, mask, ids.to(torch.int32), log_probs, stages[i % len(stages)], weight))
    return rows


def micro_batch(rows: Sequence[Row], whole: Sequence[Row], dp_size: int = 1) -> TensorDict:
    """Some rows of a batch, as a micro-batch of it."""

    def jagged(name: str) -> torch.Tensor:
        return torch.nested.as_nested_tensor([getattr(row, name) for row in rows], layout=torch.jagged)

    data = TensorDict(
        {
            "prompts": jagged("prompt"),
            "responses": jagged("response"),
            "response_mask": jagged("mask"),
            "input_ids": torch.nested.as_nested_tensor(
                [torch.cat([row.prompt, row.response]) for row in rows], layout=torch.jagged
            ),
            "teacher_ids": jagged("teacher_ids"),
            "teacher_logprobs": jagged("teacher_logprobs"),
            fields.STAGE: torch.tensor([[row.stage] for row in rows]),
            fields.WEIGHT: torch.tensor([[row.weight] for row in rows]),
            fields.MIX: torch.tensor([[row.mix] for row in rows]),
        },
        batch_size=[len(rows)],
    )
    if rows[0].teacher_tail is not None:
        data["teacher_tail"] = jagged("teacher_tail")
    tu.assign_non_tensor(
        data,
        dp_size=dp_size,
        batch_num_tokens=sum(int(row.mask.sum()) for row in whole),
        global_batch_size=len(whole),
    )
    return data


def actor_config(loss_agg_mode: str) -> Any:
    """The part of verl's actor configuration that a loss reads."""
    return SimpleNamespace(strategy="fsdp", loss_agg_mode=loss_agg_mode, loss_scale_factor=None, global_batch_info={})


def distillation_config(loss_mode: str = "paced", **settings: Any) -> Any:
    """verl's distillation configuration, with its YAML defaults."""
    defaults = {
        "loss_max_clamp": None,
        "log_prob_min_clamp": None,
        "use_policy_gradient": False,
        "use_task_rewards": False,
    }
    return SimpleNamespace(
        distillation_loss=DistillationLossConfig(loss_mode=loss_mode, topk=TOPK, **(defaults | settings))
    )


def call(loss_fn: Any, logits: torch.Tensor, data: TensorDict) -> tuple[torch.Tensor, dict[str, Any]]:
    """Both calls of verl's protocol, as its FSDP engine makes them."""
    offsets = data["input_ids"].offsets()
    outputs = loss_fn(student_logits=logits.unsqueeze(0), data=data)
    model_output = {name: torch.nested.nested_tensor_from_jagged(v.squeeze(0), offsets) for name, v in outputs.items()}
    return loss_fn(model_output=model_output, data=data)
