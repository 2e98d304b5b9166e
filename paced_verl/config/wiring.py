"""What a paced run sets in verl's configuration: replaced where it is composed, wired where verl's trainer is built."""

from __future__ import annotations

import math
from collections.abc import Iterator

from omegaconf import DictConfig, open_dict

from paced_verl.config import PacedConfig
from paced_verl.config.verdicts import Replacement, Verdict, ignore, replace
from paced_verl.names import LOSS_MODE, MANAGER, TRAINER_MODES

DATA_SEED = 1  # any constant: verl's own default is another subset of the data at every start
LOSS = "distillation.distillation_loss"
KEEP_RL = f"there is no task reward; {LOSS}.use_task_rewards=True keeps your RL loss"


def settle(config: DictConfig, paced: PacedConfig) -> list[Verdict]:
    """Bring a composed configuration to what a paced run runs, in place.

    Returns:
        What was replaced, and what has no effect. A configuration that is settled has nothing left to replace.
    """
    ignored = [*_unread(config, paced), *ignore(config, _unread_by_the_loss(config))]
    return [*replace(config, _doors(config, paced)), *replace(config, _replacements(config, paced)), *ignored]


def _doors(config: DictConfig, paced: PacedConfig) -> Iterator[Replacement]:
    """The doors through which the plugin enters; a command line written for verl alone sets other values."""
    mode = config.trainer.v1.trainer_mode
    yield "trainer.use_v1", True, "verl's deprecated trainer has no door for it"
    if f"paced_{mode}" in TRAINER_MODES:
        yield "trainer.v1.trainer_mode", f"paced_{mode}", "verl's own trainer ignores the paced block"
    yield "distillation.enabled", True, "it is a distillation"
    yield f"{LOSS}.loss_mode", LOSS_MODE, "the stage names its divergence: paced.schedule"
    yield f"{LOSS}.topk", paced.teacher.topk, "paced.teacher.topk says how many tokens"
    use_gradient = "the divergence itself is differentiated; +paced=advantage is reverse KL as a policy gradient"
    yield f"{LOSS}.use_policy_gradient", False, use_gradient
    if config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class") is None:
        yield "actor_rollout_ref.rollout.agent.agent_loop_manager_class", MANAGER, "it asks the teacher by the row"


def _replacements(config: DictConfig, paced: PacedConfig) -> Iterator[Replacement]:
    yield f"{LOSS}.log_prob_min_clamp", None, "only verl's own losses read it; the divergences are finite without"
    if config.distillation.distillation_loss.get("use_chunked_topk"):
        yield f"{LOSS}.use_chunked_topk", False, "only verl's own loss reads it; the divergences are computed in chunks"
    if config.actor_rollout_ref.model.get("use_fused_kernels", False):
        why = "fused kernels never make the logits that a divergence is computed from; it is computed in chunks"
        yield "actor_rollout_ref.model.use_fused_kernels", False, why
    if config.trainer.get("max_actor_ckpt_to_keep") == 1:
        why = "verl deletes the last checkpoint before the new one is whole; a kill in between would lose the run"
        yield "trainer.max_actor_ckpt_to_keep", 2, why
    yield from seed_of_subset(config)
    if not config.distillation.distillation_loss.use_task_rewards:
        yield from _without_task_rewards(config)
    if (micro := _micro_batch(config, paced)) is not None:
        key = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
        yield key, micro, "it must divide the rows that each stage trains on a GPU"


def seed_of_subset(config: DictConfig) -> Iterator[Replacement]:
    """A seed for the part of the data that a run takes, where it takes a part."""
    if config.data.get("seed") is None and any(
        config.data.get(key, -1) > 0 for key in ("train_max_samples", "val_max_samples")
    ):
        yield "data.seed", DATA_SEED, "without a seed verl draws other prompts at every start, and no run could resume"


def _without_task_rewards(config: DictConfig) -> Iterator[Replacement]:
    """What verl would compute for an RL loss that there is none of."""
    yield "actor_rollout_ref.actor.use_kl_loss", False, KEEP_RL
    yield "actor_rollout_ref.actor.entropy_coeff", 0, KEEP_RL
    yield "actor_rollout_ref.rollout.calculate_log_probs", False, KEEP_RL
    yield "algorithm.use_kl_in_reward", False, KEEP_RL
    if config.algorithm.adv_estimator != "paced":  # two products at once: refused
        yield "algorithm.adv_estimator", "grpo", KEEP_RL
    if config.critic.enable is not None:
        yield "critic.enable", False, KEEP_RL
    yield "trainer.critic_warmup", 0, "there is no critic, and the student would not train meanwhile"


def _micro_batch(config: DictConfig, paced: PacedConfig) -> int | None:
    """The largest micro-batch up to the one written that divides every stage's rows; ``None``: nothing to divide."""
    actor = config.actor_rollout_ref.actor
    written = actor.ppo_micro_batch_size_per_gpu
    if actor.use_dynamic_bsz or not written:
        return None
    rows = [rows_of_a_rank(config, paced, index) for index in range(len(paced.schedule))]
    if not all(whole.is_integer() for whole in rows):
        return None  # refused: no micro-batch would do
    common = math.gcd(*map(int, rows))
    return max(size for size in range(1, min(written, common) + 1) if common % size == 0)


def rows_of_a_rank(config: DictConfig, paced: PacedConfig, stage: int) -> float:
    """Rows of a mini-batch of a stage on each data-parallel rank; no whole number where they cannot be shared out."""
    actor = config.actor_rollout_ref.actor
    n = config.actor_rollout_ref.rollout.n if paced.schedule[stage].responses == "student" else 1
    return float(actor.ppo_mini_batch_size * n / data_parallel_ranks(config))


def data_parallel_ranks(config: DictConfig) -> int:
    """Ranks of the trainer that train different rows."""
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    sharing = max(actor.get("ulysses_sequence_parallel_size", 1), actor.fsdp_config.ulysses_sequence_parallel_size)
    return int(trainer.n_gpus_per_node * trainer.nnodes // sharing)


def _unread_by_the_loss(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys of verl's own losses."""
    for key in ("policy_loss_mode", "clip_ratio", "clip_ratio_low", "clip_ratio_high", "chunked_topk_chunk_size"):
        yield f"{LOSS}.{key}", "only verl's own losses read it"
    if config.distillation.distillation_loss.use_task_rewards:
        return
    yield f"{LOSS}.distillation_loss_coef", KEEP_RL
    for key in ("policy_loss", "clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "kl_loss_coef",
                "kl_loss_type"):  # fmt: skip
        yield f"actor_rollout_ref.actor.{key}", KEEP_RL
    for key in ("rollout_correction", "norm_adv_by_std_in_grpo", "gamma", "lam", "kl_penalty", "kl_ctrl",
                "gdpo_reward_keys"):  # fmt: skip
        yield f"algorithm.{key}", KEEP_RL


def _unread(config: DictConfig, paced: PacedConfig) -> Iterator[Verdict]:
    """Settings of verl and of the block that this run does not read, as far as a person may expect them to matter."""
    task_rewards = config.distillation.distillation_loss.use_task_rewards
    if config.data.get("dataloader_num_workers", 0):
        yield _unread_key(config, "data.dataloader_num_workers", "training prompts are drawn when they are needed")
    if config.data.get("shuffle") is False:
        yield _unread_key(config, "data.shuffle", "the pass-rate sampler decides the order")
    if paced.teacher.backend != "server" and config.distillation.nnodes:
        yield _unread_key(config, "distillation.nnodes", f"teacher.backend: {paced.teacher.backend} has no pool")
    for name, path in named_teachers(config).items():
        if paced.teacher.backend == "student" or paced.teacher.model == "student":
            why = "the student is its own teacher here; +paced=reverse_kl learns from that model"
            yield Verdict(f"distillation.teacher_models.{name}.model_path", path, why)
    if paced.sampler.skip_zero_weight and paced.sampler.power == 0:
        if task_rewards:
            yield Verdict("paced.sampler.skip_zero_weight", True, "prompts of weight 0 still get their task reward")
        elif paced.weight.source == "group":
            yield Verdict("paced.sampler.skip_zero_weight", True, "weight.source: group weighs after the rollouts")
    yield from _unread_in_the_block(paced)


def _unread_in_the_block(paced: PacedConfig) -> Iterator[Verdict]:
    weight, kernel = paced.weight, paced.weight.kernel
    for key, reader in (("alpha", "beta"), ("beta", "beta"), ("low", "hard_filter"), ("high", "hard_filter")):
        value = getattr(weight, key)
        if kernel != reader and value != type(weight).model_fields[key].default:
            yield Verdict(f"paced.weight.{key}", value, f"kernel: {kernel} does not read it")
    if all(stage.responses == "student" for stage in paced.schedule) and paced.targets != type(paced.targets)():
        yield Verdict("paced.targets", "…", "no stage trains on teacher responses")
    elif paced.targets.endpoint is not None:
        yield Verdict("paced.targets.endpoint", paced.targets.endpoint.url, "`paced-verl targets` asks it, ahead")
    if all(stage.responses == "teacher" for stage in paced.schedule) and paced.pass_rate.from_training:
        yield Verdict("paced.pass_rate.from_training", True, "no stage has rollouts of the student")


def _unread_key(config: DictConfig, key: str, why: str) -> Verdict:
    block, name = key.rsplit(".", 1)
    return Verdict(key, config[block][name], why)


def named_teachers(config: DictConfig) -> dict[str, str]:
    """Models under ``distillation.teacher_models`` by their names there."""
    teachers = config.distillation.teacher_models.items()
    return {name: teacher.model_path for name, teacher in teachers if teacher.get("model_path")}


def teacher_paths(config: DictConfig) -> dict[str, str]:
    """The teachers' models by their name in ``distillation.teacher_models``; none for ``teacher.backend: student``."""
    student, teacher = config.actor_rollout_ref.model.path, config.paced.teacher
    if teacher.backend == "student":
        return {}
    paths = {} if teacher.get("model") == "student" else named_teachers(config)
    return paths or ({"teacher_model": student} if teacher.backend == "reference" else {})


def wire(config: DictConfig, paced: PacedConfig, base_mode: str) -> None:
    """Prepare a settled and checked configuration for verl's trainer, in place.

    Args:
        config: verl's whole configuration.
        paced: Its ``paced`` block, parsed.
        base_mode: verl's name of the trainer, under which it looks for that trainer's own settings.
    """
    rollout, distillation = config.actor_rollout_ref.rollout, config.distillation
    with open_dict(config):
        config.trainer.v1.trainer_mode = base_mode
        if distillation.distillation_loss.use_task_rewards:
            # verl's log-probabilities overwrite the logits in their backward unless an entropy needs them, too; the
            # divergence reads them again in its own.
            config.actor_rollout_ref.actor.calculate_entropy = True
        if paced.teacher.backend != "server":
            _no_pool(config)
        if paced.teacher.topk == "full":
            distillation.distillation_loss.topk = 1  # verl wants a number; no server is asked for it
        elif paced.teacher.backend == "student" or paced.route is not None or paced.alignment.every_steps is not None:
            # The rollout servers score, too: vLLM allows 20 log-probabilities by default.
            kwargs = rollout.engine_kwargs.setdefault("vllm", {})
            kwargs["max_logprobs"] = max(kwargs.get("max_logprobs", 0), paced.teacher.topk)


def _no_pool(config: DictConfig) -> None:
    """verl checks teacher and pool against each other even where the trainer starts neither."""
    teachers = config.distillation.teacher_models
    teacher = teachers.get("teacher_model") or next(iter(teachers.values()))
    teacher.model_path = teacher.model_path or config.actor_rollout_ref.model.path
    teacher.inference.max_model_len = None
    inference = teacher.inference
    config.distillation.teacher_models = {"teacher_model": teacher}
    config.distillation.nnodes = 1
    config.distillation.n_gpus_per_node = inference.tensor_model_parallel_size * inference.data_parallel_size
