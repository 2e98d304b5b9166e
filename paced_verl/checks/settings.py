"""Settings that contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from paced_verl.config import PacedConfig
from paced_verl.context import TeacherContext
from paced_verl.kernel import weights_by_successes

LOSS_MODE = "paced"
TRAINER_MODES = ("paced_sync", "paced_colocate_async", "paced_separate_async")
MANAGER = "paced_verl.rollout.PacedAgentLoopManager"
STRATEGIES = ("fsdp", "fsdp2")


def wiring(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Keys that the ``paced`` group sets and a command line may have set back."""
    distillation = config.distillation
    expected: list[tuple[str, Any, Any]] = [
        ("trainer.use_v1", config.trainer.use_v1, True),
        ("distillation.enabled", distillation.enabled, True),
        ("distillation.distillation_loss.loss_mode", distillation.distillation_loss.loss_mode, LOSS_MODE),
        (
            "distillation.distillation_loss.use_policy_gradient",
            distillation.distillation_loss.use_policy_gradient,
            False,
        ),
        ("distillation.distillation_loss.topk", distillation.distillation_loss.topk, paced.teacher.topk),
        (
            "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
            config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class"),
            MANAGER,
        ),
    ]
    for key, value, wanted in expected:
        if value != wanted:
            yield f"{key}={value}: a paced run needs {wanted}, which +paced=… sets; take the key off your command line."
    mode = config.trainer.v1.trainer_mode
    if mode not in TRAINER_MODES:
        yield f"trainer.v1.trainer_mode={mode}: the paced block would be ignored. Use {' or '.join(TRAINER_MODES)}."


def conflicts(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if actor.strategy not in STRATEGIES:
        yield f"actor_rollout_ref.actor.strategy={actor.strategy}: paced-verl trains with {' or '.join(STRATEGIES)}."
    if config.actor_rollout_ref.model.get("use_fused_kernels", False):
        yield (
            "actor_rollout_ref.model.use_fused_kernels=True: fused kernels never make the logits that a divergence is "
            "computed from. Set it to False (the divergence itself is computed chunk by chunk)."
        )
    if rollout.temperature != 1.0:
        yield (
            f"actor_rollout_ref.rollout.temperature={rollout.temperature}: verl divides the student's logits by it, "
            "but the teacher's log-probabilities are at temperature 1, so the divergence would compare unlike things. "
            "Set it to 1.0 (validation has its own, rollout.val_kwargs.temperature)."
        )
    for key in ("log_prob_min_clamp", "use_chunked_topk"):
        if config.distillation.distillation_loss.get(key):
            yield (
                f"distillation.distillation_loss.{key}={config.distillation.distillation_loss[key]}: only verl's own "
                "forward_kl_topk reads it. Paced divergences are finite and computed in chunks without it."
            )
    if config.trainer.device == "cpu" and os.environ.get("VERL_PLATFORM", "").lower() != "cpu":
        yield "trainer.device=cpu needs VERL_PLATFORM=cpu in the environment, before Python starts."
    yield from _group(config, paced)
    yield from _one_rollout(config, paced)
    yield from _task_reward(config, paced)
    teacher_responses = any(stage.responses == "teacher" for stage in paced.schedule)
    if teacher_responses and rollout.calculate_log_probs:
        yield (
            "actor_rollout_ref.rollout.calculate_log_probs=True: responses of a teacher stage were not sampled by the "
            "student and have no rollout log-probabilities. Set it to False, or use stages with responses: student."
        )
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        yield (
            "reward.reward_model.enable=True without reward.reward_model.enable_resource_pool=True: rewards would only "
            "be known after a step's rollouts, too late for pass rates. Give the reward model its own pool."
        )
    yield from _batch_shapes(config, paced)


def _group(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Settings that need several rollouts of a prompt in one step."""
    contexts = [TeacherContext(name, paced.teacher.solution_key) for name in paced.teacher.contexts]
    if paced.route is not None:
        contexts.append(TeacherContext(paced.route.context, paced.teacher.solution_key))
    filtered = (config.algorithm.get("filter_groups") or {}).get("enable", False)
    needs = {
        "paced.weight.source=group": paced.weight.source == "group",
        "a teacher context that shows a rollout of the student": any(context.needs_rollout for context in contexts),
        "algorithm.filter_groups.enable=True": filtered,
    }
    for name in (name for name, needed in needs.items() if needed):
        if config.actor_rollout_ref.rollout.n < 2:
            yield f"{name} needs several rollouts of a prompt: set actor_rollout_ref.rollout.n to 2 or more."
        if any(stage.responses == "teacher" for stage in paced.schedule):
            yield f"{name} needs rollouts of the student: use stages with responses: student."
    n, kernel = config.actor_rollout_ref.rollout.n, paced.weight.to_kernel()
    if paced.weight.source == "group" and n >= 2 and not weights_by_successes(kernel, n - 1).any():
        yield (
            f"paced.weight.source=group weighs a response by the other {n - 1} of its prompt, and with "
            f"actor_rollout_ref.rollout.n={n} every response would weigh 0. Set rollout.n to 3 or more, or "
            "paced.weight.estimate=posterior with a prior."
        )
    if paced.weight.source == "group" and paced.sampler.power > 0:
        yield (
            f"paced.sampler.power={paced.sampler.power} draws by the table's weights, but paced.weight.source=group "
            "weighs by the group's. Set power to 0."
        )


def _one_rollout(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Pass rates that only come from training, one response a prompt."""
    n, rates = config.actor_rollout_ref.rollout.n, paced.pass_rate
    learnt = any(stage.responses == "student" for stage in paced.schedule) and paced.weight.source == "table"
    if not (n == 1 and learnt and rates.refresh == "never" and rates.file is None):
        return
    if not weights_by_successes(paced.weight.to_kernel(), n).any():
        yield (
            f"actor_rollout_ref.rollout.n={n} with paced.pass_rate.refresh=never and no file: a prompt's pass rate is "
            "0 or 1 after its one response, and it weighs 0. Set paced.weight.estimate=posterior, or rollout.n to 2 or "
            "more."
        )


def _task_reward(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Settings that only mean something beside verl's task loss."""
    task_rewards = config.distillation.distillation_loss.use_task_rewards
    if config.algorithm.adv_estimator == "paced":
        yield (
            "algorithm.adv_estimator=paced distils by an advantage, in verl's own trainers (+paced=advantage); this "
            "run distils by a loss. Use one of them: leave algorithm.adv_estimator at grpo here."
        )
    if not task_rewards:
        on = "set distillation.distillation_loss.use_task_rewards=True"
        if paced.route is not None:
            yield f"paced.route decides between distillation and a task reward, and there is none: {on}."
        for index, stage in enumerate(paced.schedule):
            if stage.coef != 1.0:
                yield f"paced.schedule[{index}].coef weighs distillation against a task reward; there is none: {on}."
        for key, value in (("actor.use_kl_loss", config.actor_rollout_ref.actor.use_kl_loss),
                           ("actor.entropy_coeff", config.actor_rollout_ref.actor.entropy_coeff)):  # fmt: skip
            if value:
                yield f"actor_rollout_ref.{key}={value} is part of verl's task loss; there is none: {on}, or unset it."
    if paced.route is None:
        return
    if paced.teacher.backend == "reference":
        yield (
            "paced.route asks the student's own servers about hopeless prompts: use paced.teacher.backend=server or "
            "student."
        )
    if paced.sampler.power > 0 or paced.weight.source == "group":
        yield "paced.route goes by the table and needs all prompts: set sampler.power=0, weight.source=table."


def _batch_shapes(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz or not actor.ppo_micro_batch_size_per_gpu:
        return
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes // actor.get("ulysses_sequence_parallel_size", 1)
    for index, stage in enumerate(paced.schedule):
        n = config.actor_rollout_ref.rollout.n if stage.responses == "student" else 1
        rows = actor.ppo_mini_batch_size * n
        if rows % (ranks * actor.ppo_micro_batch_size_per_gpu):
            yield (
                f"paced.schedule[{index}] trains {rows} rows a mini-batch (ppo_mini_batch_size × {n} response(s)) on "
                f"{ranks} data-parallel rank(s), which ppo_micro_batch_size_per_gpu="
                f"{actor.ppo_micro_batch_size_per_gpu} does not divide. Set "
                "actor_rollout_ref.actor.use_dynamic_bsz=True, or a smaller micro-batch."
            )
