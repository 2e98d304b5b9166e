"""verl's loss protocol → the row's divergence × the row's weight, plus verl's own task loss where it is asked for.

verl calls the loss of a micro-batch twice (``verl.trainer.distillation.losses.distillation_ppo_loss``): with
``student_logits``, as a logits processor that returns one number a token, then with ``model_output`` that holds these
numbers, for the scalar that is differentiated.

Rows say what to do in their fields (:mod:`paced_verl.fields`): their stage, hence their divergence, and their weight.
Rows of weight 0, prompts and masked tokens cost nothing: their logits are neither read nor given a gradient other than
zero.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.metric import AggregationType, Metric
from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor
from verl.workers.config import ActorConfig, DistillationConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from paced_verl import fields
from paced_verl.alignment.predict import Predictor, aligned
from paced_verl.config import PacedConfig
from paced_verl.divergence import TokenDivergence, full_divergence, token_divergence
from paced_verl.divergence.selection import TokenWeight, get_token_weight
from paced_verl.names import LOSS_MODE
from paced_verl.pacing.schedule import Schedule, Stage

METRIC_PREFIX, BY_CAPABILITY = "paced/divergence", "paced/capability"
_DIAGNOSTICS = {
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "tail_mass": "teacher_tail",
    "student_tail_mass": "student_tail",
    "student_entropy": "student_entropy",
}
"""Name of the metric: field of :class:`paced_verl.divergence.TokenDivergence`."""


@register_distillation_loss(DistillationLossSettings(names=[LOSS_MODE], use_topk=True))  # type: ignore[arg-type]
def _only_under_the_paced_trainer(**_: Any) -> Any:
    """Known to verl by name, so that it asks teachers for top-k log-probabilities; the paced trainer sets the loss."""
    raise RuntimeError(
        f"distillation.distillation_loss.loss_mode={LOSS_MODE} runs under the paced trainer only: "
        "add +paced=two_stage (it sets trainer.v1.trainer_mode=paced_sync)."
    )


@functools.cache
def token_weight(select: str, file: str | None) -> TokenWeight:
    """What chooses tokens; a predictor is read once a process."""
    if file is not None:
        return functools.partial(aligned, Predictor.load(Path(file)))
    return get_token_weight(select)


def paced_loss(
    config: ActorConfig,
    distillation_config: DistillationConfig,
    paced: PacedConfig,
    schedule: Schedule,
    groups: torch.Tensor | None = None,
    teacher: Any = None,
    model_output: dict[str, torch.Tensor] | None = None,
    data: TensorDict | None = None,
    dp_group: Any = None,
    student_logits: torch.Tensor | None = None,
    data_format: str = "thd",
) -> Any:
    """The loss of a micro-batch, in verl's two calls.

    Args:
        config: verl's actor configuration (``loss_agg_mode``, policy loss).
        distillation_config: verl's distillation configuration (task rewards, coefficient, clamps).
        paced: The parsed ``paced`` block (token selection, top-k).
        schedule: Says which divergence each stage trains.
        groups: Capability of each training prompt, (N,); ``None``: there are none.
        teacher: The :class:`paced_verl.teacher.engine.ReferenceTeacher` of this worker, if it has one.
        model_output: Second call: jagged (B, tokens) tensors, from the first call and from verl.
        data: The micro-batch.
        dp_group: Passed on to verl's policy loss.
        student_logits: First call: (1, tokens of this sequence-parallel rank, V), divided by the rollout temperature.
        data_format: Only verl's packed format ``thd`` is known.

    Returns:
        First call: dict of (1, tokens of this rank) float32 tensors. Second call: scalar loss and metrics. The loss is
        ``agg(Σ_t D_t · paced_weight)`` under ``actor.loss_agg_mode`` with verl's *global* denominators, so that
        micro-batches and data-parallel ranks add up to ``(1/N) Σ w̃_i ∇L_i``.
    """
    assert data is not None
    if student_logits is not None:
        head = teacher.head() if paced.teacher.topk == "full" else None
        return _token_values(schedule, data, student_logits, head)
    assert model_output is not None
    return _scalar(config, distillation_config, paced, schedule, groups, model_output, data, dp_group)


def _trained_tokens(data: TensorDict) -> torch.Tensor:
    """Whether the logits at a position predict a trained token: (total tokens,) bool, packed as ``input_ids``."""
    ends = data["input_ids"].offsets()[1:]
    mask, lengths = data["response_mask"].values().bool(), data["response_mask"].offsets().diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=mask.device), lengths)
    position_in_response = torch.arange(len(row), device=mask.device) - data["response_mask"].offsets()[row]
    trained = mask & (fields.per_row(data[fields.WEIGHT]).view(-1)[row] != 0)
    # The response fills the end of its sequence, and logits predict the next token.
    position = ends[row] - lengths[row] - 1 + position_in_response
    selected = torch.zeros(int(ends[-1]), dtype=torch.bool, device=mask.device)
    selected[position[trained]] = True
    return selected


def _token_values(
    schedule: Schedule, data: TensorDict, student_logits: torch.Tensor, head: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """First call: the divergence of every trained token, 0 elsewhere."""
    lengths = data["input_ids"].offsets().diff()
    token_stage = torch.repeat_interleave(fields.per_row(data[fields.STAGE]).view(-1), lengths)
    mix = _of_this_rank(torch.repeat_interleave(fields.per_row(data[fields.MIX]).view(-1), lengths))
    # +1 and −1: the slice pads with 0, which must mean "no stage".
    stage_or_none = _of_this_rank(torch.where(_trained_tokens(data), token_stage, -1) + 1) - 1

    logits = student_logits.squeeze(0)
    values = logits.new_zeros(len(logits), dtype=torch.float32)
    diagnostics = {name: torch.zeros_like(values) for name in _DIAGNOSTICS}
    for stage in schedule.stages:
        rows = torch.nonzero(stage_or_none == stage.index).view(-1)
        if len(rows) == 0 and stage.index > 0:
            continue  # the first stage always runs, so that an empty micro-batch still has a gradient, of zeros
        result = _divergence(stage, data, logits, rows, mix[rows], head)
        values = values.index_put((rows,), result.value.float())
        for name, field in _DIAGNOSTICS.items():
            diagnostics[name][rows] = getattr(result, field).float()
    return {"distillation_losses": values.unsqueeze(0), **{k: v.unsqueeze(0) for k, v in diagnostics.items()}}


def _divergence(
    stage: Stage,
    data: TensorDict,
    logits: torch.Tensor,
    rows: torch.Tensor,
    mix: torch.Tensor,
    head: torch.Tensor | None,
) -> TokenDivergence:
    """The stage's divergence at some of the tokens of this rank."""
    arguments: dict[str, Any] = {"divergence": stage.divergence, "rows": rows, **stage.parameters}
    if stage.towards is not None:
        arguments |= {"towards": stage.towards, "mix": mix}
    if head is not None:
        return full_divergence(logits, _of_this_rank(data["teacher_hidden"].values()), head, **arguments)
    teacher_ids, teacher_log_probs = (
        _of_this_rank(data[name].values()) for name in ("teacher_ids", "teacher_logprobs")
    )
    if "teacher_tail" in data.keys():  # noqa: SIM118 — a TensorDict's `in` asks for values
        arguments["teacher_tail"] = _of_this_rank(data["teacher_tail"].values())
    return token_divergence(logits, teacher_ids, teacher_log_probs, **arguments)


def _of_this_rank(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens of this rank of a sequence-parallel group, padded with 0 as verl pads them."""
    if get_ulysses_sequence_parallel_world_size() == 1:
        return tokens
    return slice_input_tensor(tokens.unsqueeze(0), dim=1).squeeze(0)


def _scalar(
    config: ActorConfig,
    distillation_config: DistillationConfig,
    paced: PacedConfig,
    schedule: Schedule,
    groups: torch.Tensor | None,
    model_output: dict[str, torch.Tensor],
    data: TensorDict,
    dp_group: Any,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Second call: weight, aggregate as verl does, and add verl's task loss on the student's own responses."""
    loss_config = distillation_config.distillation_loss
    mask = data["response_mask"].to_padded_tensor(0)
    values = no_padding_2_padding(model_output["distillation_losses"], data)
    if loss_config.loss_max_clamp is not None:
        values = values.clamp(max=loss_config.loss_max_clamp)
    global_batch = {
        "dp_size": data["dp_size"],
        "batch_num_tokens": max(data["batch_num_tokens"], 1),  # 0 where no response of a mini-batch could be had
        "global_batch_size": data["global_batch_size"],
        "loss_scale_factor": config.loss_scale_factor,
    }
    weight = fields.per_row(data[fields.WEIGHT])
    diagnostics = {name: no_padding_2_padding(model_output[name], data) for name in _DIAGNOSTICS}
    trained = mask.bool() & (weight != 0)
    factor = weight
    if paced.tokens.select is not None:
        with torch.no_grad():
            weigh = token_weight(paced.tokens.select, paced.tokens.file)
            chosen = weigh(diagnostics, trained, paced.tokens.keep)
        factor = weight * chosen
    loss = agg_loss(values * factor, mask, config.loss_agg_mode, **global_batch)

    # Sums here, divided by the number of trained tokens on the driver: exact whatever the split into micro-batches.
    sums = {"value": values, **diagnostics}
    if paced.tokens.select is not None:
        sums["kept"] = (chosen != 0).float()
    metrics = {
        f"{METRIC_PREFIX}/{name}": _global_sum((value.detach() * trained).sum(), data) for name, value in sums.items()
    }
    metrics[f"{METRIC_PREFIX}/tokens"] = _global_sum(trained.sum(), data)
    if groups is not None:
        metrics |= _by_capability(groups, data, diagnostics["reverse_kl"].detach(), trained)
    metrics["distillation/loss"] = Metric(value=loss, aggregation=AggregationType.SUM)

    # A policy gradient needs tokens that the student sampled: none on teacher responses.
    on_policy = any(
        schedule.stages[s].responses == "student" for s in fields.per_row(data[fields.STAGE]).view(-1).tolist()
    )
    if loss_config.use_task_rewards:
        loss = loss * loss_config.distillation_loss_coef
        if on_policy:
            policy_loss, policy_metrics = ppo_loss(config, model_output, data, dp_group)
            loss = loss + policy_loss
            metrics.update(policy_metrics)
    return loss, metrics


def _by_capability(
    groups: torch.Tensor, data: TensorDict, reverse_kl: torch.Tensor, trained: torch.Tensor
) -> dict[str, Metric]:
    """Sums of the reverse KL, and tokens, of every capability: the same names in every micro-batch."""
    prompts = fields.per_row(data[fields.PROMPT]).view(-1).cpu()
    mine = groups[prompts].to(trained.device)
    found = {}
    for group in range(int(groups.max()) + 1):
        tokens = trained & (mine == group)[:, None]
        found[f"{BY_CAPABILITY}/{group}/reverse_kl"] = _global_sum((reverse_kl * tokens).sum(), data)
        found[f"{BY_CAPABILITY}/{group}/tokens"] = _global_sum(tokens.sum(), data)
    return found


def _global_sum(value: torch.Tensor, data: TensorDict) -> Metric:
    # verl averages over data-parallel ranks before it sums over micro-batches.
    return Metric(value=value * data["dp_size"], aggregation=AggregationType.SUM)
