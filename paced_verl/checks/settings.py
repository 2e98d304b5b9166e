"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_critic

from paced_verl.config import PacedConfig
from paced_verl.config.wiring import data_parallel_ranks, rows_of_a_rank
from paced_verl.names import MANAGER, TRAINER_MODES
from paced_verl.pacing.kernel import weights_by_successes
from paced_verl.teacher.context import TeacherContext


def conflicts(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Settings of verl that a person must decide about, or that would train something else."""
    rollout = config.actor_rollout_ref.rollout
    mode, manager = config.trainer.v1.trainer_mode, rollout.agent.get("agent_loop_manager_class")
    if mode not in TRAINER_MODES:
        yield f"trainer.v1.trainer_mode={mode}: the paced block would be ignored. Use {' or '.join(TRAINER_MODES)}."
    if manager != MANAGER:
        yield (
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={manager}: it would not ask the teacher by the "
            f"row, which {MANAGER} does. Derive yours from that class's workers, or take the key off your command line."
        )
    if rollout.temperature != 1.0:
        yield (
            f"actor_rollout_ref.rollout.temperature={rollout.temperature}: verl divides the student's logits by it, "
            "but the teacher's log-probabilities are at temperature 1, so the divergence would compare unlike things. "
            "Set it to 1.0 (validation has its own, rollout.val_kwargs.temperature)."
        )
    yield from _group(config, paced)
    yield from _one_rollout(config, paced)
    yield from _task_reward(config, paced)
    teacher_responses = any(stage.responses == "teacher" for stage in paced.schedule)
    if teacher_responses and rollout.calculate_log_probs:
        yield (
            "actor_rollout_ref.rollout.calculate_log_probs=True beside a task reward: responses of a teacher stage "
            "were not sampled by the student and have no rollout log-probabilities. Set it to False, or use stages "
            "with responses: student."
        )
    reward_model = config.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        yield (
            "reward.reward_model.enable=True without reward.reward_model.enable_resource_pool=True: rewards would only "
            "be known after a step's rollouts, too late for pass rates. Say which GPUs are the reward model's: set it "
            "to True, and reward.reward_model.n_gpus_per_node and nnodes."
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
        "a teacher context that shows a rollout of the student": any(context.needs for context in contexts),
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
    elif need_critic(config):
        yield (
            f"algorithm.adv_estimator={config.algorithm.adv_estimator}, critic.enable={config.critic.enable}: a paced "
            "run trains no critic. Use an estimator without one, such as grpo or rloo, and leave critic.enable unset."
        )
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
    """verl's workers assert it, with and without dynamic micro-batches."""
    actor = config.actor_rollout_ref.actor
    for index, stage in enumerate(paced.schedule):
        if not rows_of_a_rank(config, paced, index).is_integer():
            n = config.actor_rollout_ref.rollout.n if stage.responses == "student" else 1
            yield (
                f"paced.schedule[{index}] trains {actor.ppo_mini_batch_size * n} rows a mini-batch "
                f"(actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} × {n} response(s)), which "
                f"{data_parallel_ranks(config)} data-parallel rank(s) cannot share out. Set another "
                "ppo_mini_batch_size."
            )
