"""Settings of verl that no run can have, or that verl would refuse once Ray and the models are there."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    "actor_rollout_ref.actor.ppo_mini_batch_size": 1,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 1,
    "trainer.total_epochs": 1,
    "distillation.nnodes": 0,
    "distillation.n_gpus_per_node": 0,
}
"""Whole numbers, by the least that makes sense."""
COUNTS_OR_NULL = {
    "trainer.total_training_steps": 1,
    "actor_rollout_ref.rollout.max_model_len": 1,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1,
}
NUMBERS = {
    "actor_rollout_ref.actor.optim.lr": "a number from 0 on",
    "distillation.distillation_loss.distillation_loss_coef": "a number from 0 on",
}
TEACHER_COUNTS_OR_NULL = {
    "inference.max_model_len": 1,
    "inference.tensor_model_parallel_size": 1,
    "inference.data_parallel_size": 1,
}


def blocks(config: DictConfig) -> Iterator[str]:
    """Blocks of verl's that hold something else, such as null; nothing can be looked at then."""
    wrong: list[str] = []

    def is_block(key: str) -> bool:
        if not key.startswith(tuple(f"{around}." for around in wrong)):
            if isinstance(OmegaConf.select(config, key), DictConfig):
                return True
            wrong.append(key)
        return False

    if all([is_block(key) for key in BLOCKS]):  # a list: all of them are looked at
        for name in config.distillation.teacher_models:
            is_block(f"distillation.teacher_models.{name}")
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
    for key in ("data.train_max_samples", "data.val_max_samples"):
        if OmegaConf.select(config, key, default=-1) != -1:
            yield from (f"{problem[:-1]}, or -1, which takes all rows." for problem in _count(config, key, 1))
    for key, expected in NUMBERS.items():
        value = OmegaConf.select(config, key)
        if not _is_number(value) or value < 0:
            yield f"{key}={value}: expected {expected}."
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
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    teachers = [f"distillation.teacher_models.{name}.model_path" for name in config.distillation.teacher_models]
    for key, null in (("actor_rollout_ref.model.path", False), *((key, True) for key in teachers)):
        path = OmegaConf.select(config, key)
        if not (isinstance(path, str) and path) and not (null and path is None):
            yield f"{key}={_written(path)}: expected a model's folder, or its name on the hub."
    if not isinstance(config.data.prompt_key, str):
        yield f"data.prompt_key={_written(config.data.prompt_key)}: expected the name of a column."
    estimator = config.algorithm.adv_estimator
    if estimator not in {"gae", *ADV_ESTIMATOR_REGISTRY}:
        known = ", ".join(sorted(map(str, ADV_ESTIMATOR_REGISTRY)))
        yield f"algorithm.adv_estimator={estimator}: verl knows {known}."
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


def shapes(config: DictConfig, trainer_mode: str) -> Iterator[str]:
    """Batches, lengths and pools that do not fit each other."""
    data, trainer, rollout = config.data, config.trainer, config.actor_rollout_ref.rollout
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if mini > data.train_batch_size:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} exceeds data.train_batch_size="
            f"{data.train_batch_size}: a step has no whole mini-batch. Set it to that or less."
        )
    separate = trainer_mode.endswith("separate_async")
    if separate:
        yield from _separate(config)
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
    """Micro-batches that are too short for one sequence."""
    actor = config.actor_rollout_ref.actor
    longest = config.data.max_prompt_length + config.data.max_response_length
    sharing = max(actor.ulysses_sequence_parallel_size, actor.fsdp_config.ulysses_sequence_parallel_size)
    room = actor.ppo_max_token_len_per_gpu * sharing
    if actor.use_dynamic_bsz and room < longest:
        yield (
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} × {sharing} rank(s) "
            f"a sequence: a prompt and its response may have {longest} tokens (data.max_prompt_length + "
            "data.max_response_length). Set it to that or more."
        )


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
            # Without what Hydra puts around it: which class it was building, and under which key.
            said = re.sub(r"Error in call to target \S+:|full_key: \S+", "", str(error))
            yield f"verl would refuse this: {where}{' '.join(said.split()) or type(error).__name__}"
