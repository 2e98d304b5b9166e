"""Who the teacher is, and whether it can say anything that the student does not know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from paced_verl.config import PacedConfig
from paced_verl.config.wiring import teacher_paths
from paced_verl.teacher.context import TeacherContext


def teacher_problems(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Who the teacher is, and whether it can say anything the student does not know."""
    backend, paths = paced.teacher.backend, teacher_paths(config)
    pool = config.distillation.n_gpus_per_node * config.distillation.nnodes
    if backend == "server":
        if not paths:
            yield "distillation.teacher_models.teacher_model.model_path is not set: which model is the teacher?"
        if pool == 0:
            yield (
                f"distillation.n_gpus_per_node={config.distillation.n_gpus_per_node}, distillation.nnodes="
                f"{config.distillation.nnodes}: the teacher needs at least one GPU of its own. Or take a teacher "
                "without a pool: paced.teacher.backend=reference, or student."
            )
        yield from _replicas(config, pool)
    elif len(paths) > 1:
        yield f"paced.teacher.backend={backend} knows one teacher, distillation.teacher_models has {len(paths)}."
    if isinstance(paced.teacher.context, dict):
        keys = {teacher.key for name, teacher in config.distillation.teacher_models.items() if name in paths}
        if backend != "server" or keys != set(paced.teacher.context):
            yield (
                f"paced.teacher.context={paced.teacher.context} names a context for each of several teachers, but "
                f"distillation.teacher_models has the keys {sorted(map(str, keys))}."
            )
    yield from _says_something(config, paced, paths)
    needs_fsdp2 = [("paced.teacher.topk", "full")] * (paced.teacher.topk == "full")
    needs_fsdp2 += [("paced.teacher.update", paced.teacher.update)] * (paced.teacher.update != "frozen")
    strategy = config.actor_rollout_ref.ref.strategy
    for key, value in needs_fsdp2 if strategy != "fsdp2" else []:
        yield f"{key}={value} needs actor_rollout_ref.ref.strategy=fsdp2; it is {strategy}."
    dtype = config.actor_rollout_ref.ref.fsdp_config.get("model_dtype", "fp32")
    if paced.teacher.update == "ema" and dtype not in ("fp32", "float32"):
        yield (
            f"actor_rollout_ref.ref.fsdp_config.model_dtype={dtype} rounds away what a moving average "
            "(paced.teacher.update=ema) adds in a step. Set it to fp32; it still computes in bfloat16."
        )
    if backend == "reference" and not _pool_free_targets(paced):
        yield (
            "paced.teacher.backend=reference scores but does not write, and a stage has responses: teacher. Give it "
            "stored responses (paced.targets.column, or paced.targets.file made by `paced-verl targets`)."
        )

    yield from _can_be_sampled(paced)


def _can_be_sampled(paced: PacedConfig) -> Iterator[str]:
    """A teacher whose own responses are judged has to write some, without a rollout of the student at hand."""
    asks = []
    if (samples := paced.pass_rate.teacher_samples) is not None:
        instead = "Leave it null and give paced.targets.file, made by `paced-verl targets`"
        asks.append((f"paced.pass_rate.teacher_samples={samples}", instead, "leave teacher_samples null"))
    if (shared := paced.capability) is not None and shared.probe is not None and shared.probe.score == "divergence":
        asks.append(("paced.capability.probe.score=divergence", "Set score: accuracy", "set score: accuracy"))
    for key, instead, otherwise in asks:
        if paced.teacher.backend == "reference":
            yield f"{key}: paced.teacher.backend=reference scores but does not write. {instead}."
        if any(TeacherContext(name, "").needs for name in paced.teacher.contexts):
            yield (
                f"{key} asks the teacher before the student has responded, but paced.teacher.context="
                f"{paced.teacher.context} shows it a response of the student. Take another context, or {otherwise}."
            )


def _replicas(config: DictConfig, pool: int) -> Iterator[str]:
    """verl gives a single teacher its whole pool, whatever number of replicas is written."""
    teachers = config.distillation.teacher_models
    if set(teachers) != {"teacher_model"}:
        return
    written, inference = teachers.teacher_model.get("num_replicas"), teachers.teacher_model.inference
    size = inference.tensor_model_parallel_size * inference.data_parallel_size
    if written and written * size != pool:
        yield (
            f"distillation.teacher_models.teacher_model.num_replicas={written}: verl gives the one teacher its whole "
            f"pool, {pool} GPU(s) with {size} a replica. Leave it unset, or size the pool to it "
            "(distillation.n_gpus_per_node, nnodes)."
        )


def _pool_free_targets(paced: PacedConfig) -> bool:
    if all(stage.responses == "student" for stage in paced.schedule) or paced.targets.column is not None:
        return True
    return paced.targets.file is not None and Path(paced.targets.file).exists()


def _says_something(config: DictConfig, paced: PacedConfig, paths: dict[str, str]) -> Iterator[str]:
    """A teacher that is the student and sees what the student sees has a divergence of 0."""
    student = _real(config.actor_rollout_ref.model.path)
    itself = [name for name, path in paths.items() if _real(path) == student]
    if paced.teacher.update != "frozen" and not itself:
        yield (
            f"paced.teacher.update={paced.teacher.update} needs a teacher that starts as the student: leave "
            "distillation.teacher_models.teacher_model.model_path unset, or set it to actor_rollout_ref.model.path."
        )
    lora = config.actor_rollout_ref.model.get("lora_rank", 0) > 0
    if paced.teacher.update != "frozen" and lora:
        yield (
            f"paced.teacher.update={paced.teacher.update} copies whole weights, but the student is a LoRA adapter "
            "(actor_rollout_ref.model.lora_rank). Use update: frozen, or paced.teacher.backend=student."
        )
    if "none" not in paced.teacher.contexts:
        return
    # Beside a task reward the student moves away from its initial weights, which then hold it back.
    for name in () if config.distillation.distillation_loss.use_task_rewards else itself:
        yield (
            f"distillation.teacher_models.{name}.model_path is the student itself, and paced.teacher.context="
            "none shows it what the student sees: the divergence is 0 for ever. Give the teacher a context "
            "(paced.teacher.context=solution) or another model."
        )
    if paced.teacher.backend == "student":
        yield (
            "paced.teacher.backend=student with paced.teacher.context=none: the student would be its own teacher, see "
            "what it sees, and the divergence is 0 for ever. Give it a context (paced.teacher.context=solution)."
        )


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))
