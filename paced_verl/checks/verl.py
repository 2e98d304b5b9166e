"""Settings of verl that no run can have, or that verl would refuse once Ray and the models are there."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from paced_verl.names import TRAINER_MODES

STRATEGIES = ("fsdp", "fsdp2")
DEVICES = ("cuda", "npu", "cpu")
AGENT_LOOPS = ("single_turn_agent", "tool_agent")
"""Those that verl 0.9.1 registers itself."""

BLOCKS = (
    "trainer", "trainer.v1", "algorithm", "data", "critic", "actor_rollout_ref", "actor_rollout_ref.model",
    "actor_rollout_ref.actor", "actor_rollout_ref.actor.optim", "actor_rollout_ref.ref", "actor_rollout_ref.rollout",
    "actor_rollout_ref.rollout.agent", "reward", "reward.reward_manager", "reward.reward_model",
    "reward.custom_reward_function", "reward.sandbox_fusion", "distillation", "distillation.distillation_loss",
    "distillation.teacher_models",
)  # fmt: skip
"""What every configuration of verl has, and everything here looks into."""

COUNTS = {
    "data.train_batch_size": 1,
    "data.max_prompt_length": 1,
    "data.max_response_length": 1,
    "actor_rollout_ref.rollout.n": 1,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.data_parallel_size": 1,
    "actor_rollout_ref.rollout.max_num_batched_tokens": 1,
    "actor_rollout_ref.rollout.max_num_seqs": 1,
    "actor_rollout_ref.rollout.agent.num_workers": 1,
    "actor_rollout_ref.rollout.val_kwargs.n": 1,
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 1,
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": 1,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 1,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 1,
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": 1,
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": 1,
    "actor_rollout_ref.model.lora_rank": 0,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 1,
    "trainer.total_epochs": 1,
    "distillation.nnodes": 0,
    "distillation.n_gpus_per_node": 0,
    "trainer.save_freq": -1,
    "trainer.test_freq": -1,
}
"""Whole numbers, by the least that makes sense."""
COUNTS_OR_NULL = {
    "data.seed": 0,
    "data.gen_batch_size": 1,
    "data.val_batch_size": 1,
    "trainer.total_training_steps": 1,
    "actor_rollout_ref.rollout.max_model_len": 1,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": -1,
}
NOT_NEGATIVE = (
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.optim.weight_decay",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio",
    "actor_rollout_ref.rollout.val_kwargs.temperature",
    "distillation.distillation_loss.distillation_loss_coef",
)
POSITIVE = ("actor_rollout_ref.actor.grad_clip", "actor_rollout_ref.rollout.temperature")
SHARES = ("actor_rollout_ref.rollout.gpu_memory_utilization", "actor_rollout_ref.rollout.top_p")
DTYPES = ("fp32", "float32", "32", "bf16", "bfloat16", "fp16", "float16", "16")
LOAD_FORMATS = (
    "auto", "hf", "bitsandbytes", "dummy", "fastsafetensors", "instanttensor", "mistral", "modelexpress", "npcache",
    "pt", "runai_streamer", "runai_streamer_sharded", "safetensors", "sharded_state", "tensorizer",
)  # fmt: skip
"""vLLM's own; its module takes seconds to import."""
WORDS = {
    "data.truncation": ("error", "left", "right", "middle"),
    "trainer.resume_mode": ("auto", "disable", "resume_path"),
    "actor_rollout_ref.rollout.dtype": ("auto", "half", "float16", "bfloat16", "float", "float32"),
    "actor_rollout_ref.rollout.load_format": LOAD_FORMATS,
    "actor_rollout_ref.actor.kl_loss_type": [
        kind + straight for kind in ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3") for straight in ("", "+")
    ],
    **{
        f"actor_rollout_ref.{role}.fsdp_config.{key}": DTYPES
        for role in ("actor", "ref")
        for key in ("model_dtype", "dtype")
    },
}
"""Words that verl or vLLM knows, and looks up late; null is the default of its own, where there is one."""
TEACHER_COUNTS_OR_NULL = {
    "inference.max_model_len": 1,
    "inference.tensor_model_parallel_size": 1,
    "inference.data_parallel_size": 1,
}


def blocks(config: DictConfig) -> Iterator[str]:
    """Blocks of verl's that hold something else, such as null; nothing can be looked at then."""
    wrong: list[str] = []
    for key in BLOCKS:
        inside = any(key.startswith(f"{around}.") for around in wrong)
        if not (inside or isinstance(OmegaConf.select(config, key), DictConfig)):
            wrong.append(key)
    if not wrong:
        teachers = config.distillation.teacher_models
        wrong = [f"distillation.teacher_models.{name}" for name, teacher in teachers.items()
                 if not isinstance(teacher, DictConfig)]  # fmt: skip
        wrong += ["distillation.teacher_models"] * (not teachers)
    for key in wrong:
        value = _written(OmegaConf.select(config, key))
        yield f"{key}={value}: expected verl's block of settings. Change the settings in it one by one."


def _written(value: Any) -> Any:
    """A value as it is written on a command line."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def engines(config: DictConfig) -> Iterator[str]:
    """Engines of training and generation; nothing else can be looked at under another one."""
    actor = config.actor_rollout_ref.actor
    trained = f"paced-verl trains with FSDP: {' or '.join(STRATEGIES)}"
    engine = OmegaConf.select(config, "model_engine")
    if engine not in (None, "dp"):
        yield f"model_engine={engine}: {trained}, which is model_engine=dp, verl's default."
    elif actor.get("strategy") not in STRATEGIES:
        yield f"actor_rollout_ref.actor.strategy={actor.get('strategy')}: {trained}."
    elif config.actor_rollout_ref.ref.strategy not in STRATEGIES:
        yield f"actor_rollout_ref.ref.strategy={config.actor_rollout_ref.ref.strategy}: {trained}."
    servers = ["actor_rollout_ref.rollout.name"]
    for name, teacher in config.distillation.teacher_models.items():
        servers += [f"distillation.teacher_models.{name}.inference.name"] * bool(teacher.get("model_path"))
    for key in servers:
        if (server := OmegaConf.select(config, key)) != "vllm":
            yield f"{key}={server}: paced-verl knows vLLM's servers only, and their prompt log-probabilities. Use vllm."


def numbers(config: DictConfig) -> Iterator[str]:
    """Numbers that a plan divides by, and that verl meets late or never."""
    for key, least in COUNTS.items():
        yield from _count(config, key, least)
    for key, least in COUNTS_OR_NULL.items():
        yield from _count(config, key, least, null=True)
    for name in config.distillation.teacher_models:
        for key, least in TEACHER_COUNTS_OR_NULL.items():
            yield from _count(config, f"distillation.teacher_models.{name}.{key}", least, null=True)
    shares = [*SHARES, *(f"distillation.teacher_models.{name}.inference.gpu_memory_utilization"
                         for name in config.distillation.teacher_models)]  # fmt: skip
    for keys, expected, fits in (
        (NOT_NEGATIVE, "a number from 0 on", lambda value: value >= 0),
        (POSITIVE, "a number above 0", lambda value: value > 0),
        (shares, "a number above 0, up to 1", lambda value: 0 < value <= 1),
    ):
        for key in keys:
            value = OmegaConf.select(config, key)
            if not _is_number(value) or not fits(value):
                yield f"{key}={_written(value)}: expected {expected}."
    for key in ("data.train_max_samples", "data.val_max_samples"):
        if OmegaConf.select(config, key, default=-1) != -1:
            yield from (f"{problem[:-1]}, or -1, which takes all rows." for problem in _count(config, key, 1))
    clamp = config.distillation.distillation_loss.loss_max_clamp
    if clamp is not None and not (_is_number(clamp) and clamp > 0):
        yield f"distillation.distillation_loss.loss_max_clamp={clamp}: expected a number above 0, or null for none."


def _count(config: DictConfig, key: str, least: int, null: bool = False) -> Iterator[str]:
    value = OmegaConf.select(config, key)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not ((whole and value >= least) or (null and value is None)):
        yield f"{key}={_written(value)}: expected a whole number from {least} on."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def names(config: DictConfig) -> Iterator[str]:
    """Words that verl looks up once workers are running, and paths."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    teachers = [f"distillation.teacher_models.{name}.model_path" for name in config.distillation.teacher_models]
    for key, null in (("actor_rollout_ref.model.path", False), *((key, True) for key in teachers)):
        path = OmegaConf.select(config, key)
        if not (isinstance(path, str) and path) and not (null and path is None):
            yield f"{key}={_written(path)}: expected a model's folder, or its name on the hub."
    if not isinstance(config.data.prompt_key, str):
        yield f"data.prompt_key={_written(config.data.prompt_key)}: expected the name of a column."
    estimator = config.algorithm.adv_estimator
    if estimator not in {"gae", "paced", *ADV_ESTIMATOR_REGISTRY}:
        known = ", ".join(sorted(map(str, ADV_ESTIMATOR_REGISTRY)))
        yield f"algorithm.adv_estimator={estimator}: verl knows {known}."
    policy_loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    if policy_loss not in POLICY_LOSS_REGISTRY:
        known = ", ".join(sorted(POLICY_LOSS_REGISTRY))
        yield f"actor_rollout_ref.actor.policy_loss.loss_mode={policy_loss}: verl knows {known}."
    if not isinstance(mode := config.trainer.v1.trainer_mode, str):
        yield f"trainer.v1.trainer_mode={mode}: expected the name of a trainer."
    for key, words in WORDS.items():
        if (word := OmegaConf.select(config, key)) is not None and str(word) not in words:
            yield f"{key}={word}: expected one of {', '.join(words)}."
    yield from _loggers(config.trainer.logger)
    yield from _resume(config.trainer)
    agent = config.actor_rollout_ref.rollout.agent
    if not agent.agent_loop_config_path and agent.default_agent_loop not in AGENT_LOOPS:
        yield (
            f"actor_rollout_ref.rollout.agent.default_agent_loop={agent.default_agent_loop}: verl registers "
            f"{', '.join(AGENT_LOOPS)}; one of your own is named in a file, agent.agent_loop_config_path."
        )


def device(config: DictConfig) -> Iterator[str]:
    """Whether this machine was told of the device. Asked where a run is launched: a plan may be for another machine."""
    platform, device = os.environ.get("VERL_PLATFORM", ""), config.trainer.device
    if device not in DEVICES:
        yield f"trainer.device={device}: expected one of {', '.join(DEVICES)}."
    if (device == "cpu") != (platform.strip().lower() == "cpu"):
        yield (
            f"trainer.device={device}, and VERL_PLATFORM={platform!r} in the environment: a "
            "CPU machine needs trainer.device=cpu (+machine=cpu sets it) and VERL_PLATFORM=cpu before Python starts."
        )


def _loggers(logger: Any) -> Iterator[str]:
    from verl.utils.tracking import Tracking

    names = [logger] if isinstance(logger, str) else logger
    if not OmegaConf.is_list(names) and not isinstance(names, list):
        yield f"trainer.logger={_written(logger)}: expected a list, such as [console,file]."
        return
    for name in names:
        if name not in Tracking.supported_backend:
            yield f"trainer.logger=[{name}]: verl logs to {', '.join(Tracking.supported_backend)}."


def _resume(trainer: DictConfig) -> Iterator[str]:
    if trainer.resume_mode == "resume_path" and "global_step_" not in str(trainer.resume_from_path):
        path = trainer.resume_from_path
        yield f"trainer.resume_from_path={path}: trainer.resume_mode=resume_path needs the folder …/global_step_N."


def shapes(config: DictConfig, trainer_mode: str) -> Iterator[str]:
    """Batches, lengths and pools that do not fit each other."""
    data, trainer, rollout = config.data, config.trainer, config.actor_rollout_ref.rollout
    for part in ("prompt", "response"):
        here, there = rollout[f"{part}_length"], data[f"max_{part}_length"]
        if here != there:
            yield (
                f"actor_rollout_ref.rollout.{part}_length={here} and data.max_{part}_length={there} are one length. "
                f"Set data.max_{part}_length alone; the other follows it."
            )
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if mini > data.train_batch_size:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} exceeds data.train_batch_size="
            f"{data.train_batch_size}: a step has no whole mini-batch. Set it to that or less."
        )
    generated = data.get("gen_batch_size")
    if generated and data.train_batch_size % generated:
        yield f"data.gen_batch_size={generated} does not divide data.train_batch_size={data.train_batch_size}."
    separate = trainer_mode.endswith("separate_async")
    if separate:
        yield from _separate(config)
    elif not config.actor_rollout_ref.get("hybrid_engine", True):
        yield (
            "actor_rollout_ref.hybrid_engine=False takes the student's vLLM servers off the trainer's GPUs, which only "
            "trainer.v1.trainer_mode=separate_async has others for. Leave it at True."
        )
    ranks, sharing = trainer.nnodes * trainer.n_gpus_per_node, _sharing(config)
    if ranks % sharing:
        yield (
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size={sharing} does not divide the trainer's {ranks} "
            "GPU(s)."
        )
    gpus = rollout.nnodes * rollout.n_gpus_per_node if separate else trainer.nnodes * trainer.n_gpus_per_node
    size = rollout.tensor_model_parallel_size * rollout.get("data_parallel_size", 1)
    if gpus % size:
        yield (
            f"actor_rollout_ref.rollout.tensor_model_parallel_size × data_parallel_size = {size} does not divide the "
            f"{gpus} GPU(s) of the student's vLLM servers."
        )


def _separate(config: DictConfig) -> Iterator[str]:
    """What verl asserts when it builds its trainer with rollouts on GPUs of their own."""
    rollout, steps = config.actor_rollout_ref.rollout, config.trainer.v1.separate_async.parameter_sync_step
    mini, batch = config.actor_rollout_ref.actor.ppo_mini_batch_size, config.data.train_batch_size
    where = "trainer.v1.trainer_mode=paced_separate_async"
    if batch != steps * mini:
        yield (
            f"{where}: data.train_batch_size={batch} must be trainer.v1.separate_async.parameter_sync_step={steps} × "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}."
        )
    if not rollout.nnodes * rollout.n_gpus_per_node:
        yield f"{where}: rollouts need GPUs of their own, actor_rollout_ref.rollout.nnodes and n_gpus_per_node."
    if rollout.checkpoint_engine.backend == "naive":
        yield f"{where}: actor_rollout_ref.rollout.checkpoint_engine.backend=naive cannot reach them; on GPUs use nccl."


def lengths(config: DictConfig) -> Iterator[str]:
    """Micro-batches and servers that are too short for one sequence."""
    from verl.trainer.ppo.utils import need_reference_policy

    actor, ref, rollout = (config.actor_rollout_ref[part] for part in ("actor", "ref", "rollout"))
    longest, sharing = config.data.max_prompt_length + config.data.max_response_length, _sharing(config)
    limits: list[tuple[str, int, int]] = []
    if rollout.max_model_len is not None:
        limits.append(("rollout.max_model_len", rollout.max_model_len, 1))
    if actor.use_dynamic_bsz:
        limits.append(("actor.ppo_max_token_len_per_gpu", actor.ppo_max_token_len_per_gpu, sharing))
    distils_only = config.distillation.enabled and not config.distillation.distillation_loss.use_task_rewards
    if rollout.log_prob_use_dynamic_bsz and not distils_only:  # the student's old log-probabilities
        limits.append(("rollout.log_prob_max_token_len_per_gpu", rollout.log_prob_max_token_len_per_gpu, sharing))
    if ref.log_prob_use_dynamic_bsz and need_reference_policy(config):
        ranks = ref.ulysses_sequence_parallel_size
        limits.append(("ref.log_prob_max_token_len_per_gpu", ref.log_prob_max_token_len_per_gpu, ranks))
    for key, tokens, ranks in limits:
        if tokens * ranks < longest:
            yield (
                f"actor_rollout_ref.{key}={tokens}{f' × {ranks} ranks a sequence' if ranks > 1 else ''}: a prompt and "
                f"its response may have {longest} tokens (data.max_prompt_length + data.max_response_length). Set it "
                "to that or more."
            )


def _sharing(config: DictConfig) -> int:
    """Ranks of the trainer that share a sequence."""
    actor = config.actor_rollout_ref.actor
    return int(max(actor.ulysses_sequence_parallel_size, actor.fsdp_config.ulysses_sequence_parallel_size))


def _trainer(mode: str) -> None:
    """Ask verl's registry for a trainer that is not one of its own; importing it takes seconds."""
    if f"paced_{mode}" not in TRAINER_MODES:
        from verl.trainer.ppo.v1 import get_trainer_cls

        get_trainer_cls(mode)


def verls_own(wired: DictConfig) -> Iterator[str]:
    """What verl itself finds wrong, which it would say on the driver.

    Args:
        wired: A copy of the configuration as verl's trainer will see it.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    wired = copy.deepcopy(wired)

    def validate() -> None:
        validate_config(wired, need_reference_policy(wired), need_critic(wired))

    questions = (
        ("trainer.v1.trainer_mode: ", lambda: _trainer(wired.trainer.v1.trainer_mode)),
        ("", validate),
        ("actor_rollout_ref.rollout: ", lambda: omega_conf_to_dataclass(wired.actor_rollout_ref.rollout)),
        ("distillation: ", lambda: omega_conf_to_dataclass(wired.distillation)),
    )
    for where, ask in questions:
        try:
            # It prints that it has passed, and warns of what is meant.
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                ask()
        except Exception as error:  # whatever verl raises is its answer
            cause = error.__cause__ or error  # Hydra's wrapper names a class that nobody wrote
            yield f"verl would refuse this: {where}{' '.join(str(cause).split()) or type(cause).__name__}"
