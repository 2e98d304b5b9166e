"""What can be known to be wrong before a GPU is taken: key, value, what was expected, what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from paced_verl.config import ConfigError, PacedConfig
from paced_verl.context import TeacherContext
from paced_verl.passrate import PassRateTable
from paced_verl.targets import TargetStore

VERL_VERSION = "0.9.1"
LOSS_MODE = "paced"
TRAINER_MODES = ("paced_sync",)
MANAGER = "paced_verl.rollout.PacedAgentLoopManager"
STRATEGIES = ("fsdp", "fsdp2")


def check(config: DictConfig) -> PacedConfig:
    """Check a composed verl configuration that has a ``paced`` block.

    Returns:
        The parsed block.

    Raises:
        ConfigError: One problem a line.
    """
    block = OmegaConf.to_container(config.paced, resolve=True)
    assert isinstance(block, dict)
    paced = PacedConfig.parse({str(key): value for key, value in block.items()})
    problems = [*_versions(), *_wiring(config, paced), *_conflicts(config, paced), *_files(config, paced)]
    # Each step reads what the one before has found to be there.
    for step in (_data, _models):
        problems = problems or list(step(config, paced))
    if problems:
        raise ConfigError("\n".join(problems))
    return paced


def check_length(most_steps: int, total_steps: int) -> None:
    """Raise where verl would end the run before its schedule does.

    Args:
        most_steps: Steps in ``trainer.total_epochs`` epochs.
        total_steps: ``trainer.total_training_steps``, which the schedule covers.
    """
    if total_steps > most_steps:
        raise ConfigError(
            f"trainer.total_training_steps={total_steps}, but trainer.total_epochs end after {most_steps} steps and "
            "verl stops at whichever comes first: the schedule would never reach its end. Raise trainer.total_epochs."
        )


def plugin_problems() -> Iterator[str]:
    """Why verl would not load the plugin, here or in the processes that Ray starts."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if "paced" not in {point.name for point in importlib.metadata.entry_points(group="verl.plugins")}:
        yield "paced-verl is not installed as a verl plugin (entry point verl.plugins: paced). Install it with pip."
    if policy == "none" or (policy != "auto" and "paced" not in policy.split(",")):
        yield f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading paced-verl. Unset it, or add paced to it."


def _versions() -> Iterator[str]:
    yield from plugin_problems()
    installed = importlib.metadata.version("verl")
    if installed != VERL_VERSION:
        yield (
            f"verl {installed} is installed; paced-verl is written for and tested on verl {VERL_VERSION}: "
            f"pip install verl=={VERL_VERSION}"
        )


def _wiring(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
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


def _conflicts(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
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
    if not any(teacher.get("model_path") for teacher in config.distillation.teacher_models.values()):
        yield "distillation.teacher_models.teacher_model.model_path is not set: which model is the teacher?"
    if config.distillation.n_gpus_per_node * config.distillation.nnodes == 0:
        yield (
            f"distillation.n_gpus_per_node={config.distillation.n_gpus_per_node}, distillation.nnodes="
            f"{config.distillation.nnodes}: the teacher needs at least one GPU of its own."
        )
    if paced.teacher.context == "none":
        student = os.path.realpath(os.path.expanduser(config.actor_rollout_ref.model.path))
        for name, teacher in config.distillation.teacher_models.items():
            if teacher.get("model_path") and os.path.realpath(os.path.expanduser(teacher.model_path)) == student:
                yield (
                    f"distillation.teacher_models.{name}.model_path is the student itself, and paced.teacher.context="
                    "none shows it what the student sees: the divergence is 0 for ever. Give the teacher a context "
                    "(paced.teacher.context=solution) or another model."
                )
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


def _files(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    for key, path in (("paced.pass_rate.file", paced.pass_rate.file), ("paced.targets.file", paced.targets.file)):
        if path is None:
            continue
        if not Path(path).exists():
            if key == "paced.pass_rate.file":
                yield f"{key}={path}: there is no such file."
            continue
        try:
            if key == "paced.pass_rate.file":
                # Which rows verl keeps is only known once it has tokenized them all; the trainer looks again.
                filtered = config.data.get("filter_overlong_prompts", True)
                PassRateTable.load(path, expected_size=None if filtered else number_of_prompts(config))
            else:
                TargetStore().load(path)
        except ValueError as error:
            yield f"{key}: {error}"


def train_files(config: DictConfig) -> list[str]:
    """``data.train_files`` as a list."""
    files = config.data.train_files
    return [files] if isinstance(files, str) else list(files)


def number_of_prompts(config: DictConfig) -> int | None:
    """Rows of the training files, before verl filters overlong prompts; ``None`` where they are not local parquet."""
    files = [os.path.expanduser(file) for file in train_files(config)]
    if not all(file.endswith(".parquet") and Path(file).exists() for file in files):
        return None
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    limit = config.data.get("train_max_samples", -1)
    return min(rows, limit) if limit > 0 else rows


def _data(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    for file in map(os.path.expanduser, train_files(config)):
        if not Path(file).exists():
            yield f"data.train_files: {file} does not exist."
        elif file.endswith(".parquet"):
            yield from _columns(config, paced, file)


def _columns(config: DictConfig, paced: PacedConfig, file: str) -> Iterator[str]:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        yield f"data.train_files: {file} is not a parquet file ({error})."
        return
    context = TeacherContext(paced.teacher.context, paced.teacher.solution_key)
    needed = {config.data.get("prompt_key", "prompt"): "data.prompt_key"}
    if not config.reward.reward_model.enable:
        why = "without it no response can be scored, and there is no pass rate: the reward function reads it"
        needed |= {"data_source": why, "reward_model": why}
    if "solution" in context.variables:
        needed[f"extra_info.{paced.teacher.solution_key}"] = (
            f"paced.teacher.context={paced.teacher.context} shows it to the teacher"
        )
    if "answer" in context.variables:
        needed["reward_model.ground_truth"] = f"paced.teacher.context={paced.teacher.context} shows it to the teacher"
    if paced.targets.column:
        needed[paced.targets.column] = "paced.targets.column"
    for path, why in needed.items():
        if not _has_field(schema, path):
            yield f"{file} has no field {path} ({why}). Its columns: {', '.join(schema.names)}."


def _has_field(schema: pa.Schema, path: str) -> bool:
    first, *rest = path.split(".")
    if first not in schema.names:
        return False
    kind = schema.field(first).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        kind = kind.field(name).type
    return True


def _models(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Vocabularies and lengths, of models that are folders here (a hub's are checked by verl when it loads them)."""
    student = config.actor_rollout_ref.model.path
    teachers = {
        key: teacher for key, teacher in config.distillation.teacher_models.items() if teacher.get("model_path")
    }
    for key, path in [("actor_rollout_ref.model.path", student)] + [
        (f"distillation.teacher_models.{name}.model_path", teacher.model_path) for name, teacher in teachers.items()
    ]:
        if os.path.isabs(path) and not Path(path).exists():
            yield f"{key}={path} does not exist."
            return
    if not Path(student).is_dir():
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    vocabulary = tokenizer.get_vocab()
    for name, teacher in teachers.items():
        key = f"distillation.teacher_models.{name}.model_path={teacher.model_path}"
        if not Path(teacher.model_path).is_dir():
            continue
        if AutoTokenizer.from_pretrained(teacher.model_path).get_vocab() != vocabulary:
            yield (
                f"{key}: its vocabulary differs from the student's ({student}). A divergence compares distributions "
                "over the same tokens: use a teacher of the student's family."
            )
        sizes = json.loads((Path(teacher.model_path) / "config.json").read_text())
        if paced.teacher.topk > sizes["vocab_size"]:
            size = sizes["vocab_size"]
            yield f"paced.teacher.topk={paced.teacher.topk} exceeds the teacher's vocabulary of {size} tokens."
        limit = teacher.inference.max_model_len or sizes.get("max_position_embeddings")
        if limit is not None:
            yield from _teacher_lengths(
                config, paced, tokenizer, int(limit), f"distillation.teacher_models.{name}.inference.max_model_len"
            )


def _teacher_lengths(config: DictConfig, paced: PacedConfig, tokenizer: Any, limit: int, key: str) -> Iterator[str]:
    response = config.actor_rollout_ref.rollout.response_length
    prompt, what = config.data.max_prompt_length, f"data.max_prompt_length={config.data.max_prompt_length}"
    context = TeacherContext(paced.teacher.context, paced.teacher.solution_key)
    if context.privileged:
        prompt = max(_context_lengths(config, context, tokenizer), default=0)
        what = f"the longest teacher prompt under paced.teacher.context={paced.teacher.context}, {prompt} tokens"
    if prompt + response + 1 > limit:
        yield (
            f"{key}={limit} is too short: the teacher reads {what}, plus a response of up to {response} tokens, plus "
            f"one. Set it to {prompt + response + 1} or more."
        )


def _context_lengths(config: DictConfig, context: TeacherContext, tokenizer: Any, most: int = 1000) -> Sequence[int]:
    """Token lengths of the teacher prompts of the rows with the most text."""
    rows: list[dict[str, Any]] = []
    for file in map(os.path.expanduser, train_files(config)):
        if file.endswith(".parquet"):
            rows += pq.read_table(file).to_pylist()
    prompts = [context.messages(row | {"raw_prompt": row[config.data.get("prompt_key", "prompt")]}) for row in rows]
    prompts.sort(key=lambda messages: -sum(len(str(message["content"])) for message in messages))
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts[:most]]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
