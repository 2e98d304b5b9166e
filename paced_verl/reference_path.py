"""``actor_rollout_ref.ref.teacher_path``: verl's reference worker loads a teacher instead of the actor's own model.

verl 0.9.1 builds the reference worker from the actor's ``model`` configuration, whatever its path. Every other key of
``model`` and ``ref`` (attention, dtype, offload, micro-batches) keeps its meaning for the teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

KEY = "actor_rollout_ref.ref.teacher_path"


def install(engine_workers: ModuleType) -> None:
    """Have ``verl.workers.engine_workers.ActorRolloutRefWorker.init_model`` read the key; without it, as before."""
    worker_class = engine_workers.ActorRolloutRefWorker
    stock = worker_class.init_model

    @functools.wraps(stock)  # keeps verl's mark that this is a method of the worker group
    def init_model(self: Any) -> None:
        # verl makes a dataclass of `ref`, which knows no such key.
        with open_dict(self.config.ref):
            teacher = self.config.ref.pop("teacher_path", None)
        if teacher and "ref" in self.role:
            self.ref_worker_cls = functools.partial(_teacher_worker, self.ref_worker_cls, self.config.model, teacher)
        stock(self)

    worker_class.init_model = init_model


def _teacher_worker(worker_class: Any, model: DictConfig, path: str, config: Any) -> Any:
    """The reference worker that ``config`` (verl's ``TrainingWorkerConfig``) describes, of the model at ``path``."""
    from verl.utils.config import omega_conf_to_dataclass

    teacher = OmegaConf.merge(model, {"path": path, "hf_config_path": None, "tokenizer_path": None})
    assert isinstance(teacher, DictConfig)
    model_config = omega_conf_to_dataclass(teacher)
    model_config.mtp = config.model_config.mtp  # off, as verl has it for a reference worker
    return worker_class(config=dataclasses.replace(config, model_config=model_config))


def problems_of_teacher(config: DictConfig, task_coef: float, files: bool) -> Iterator[str]:
    """What is wrong with the teacher that the reference worker will load, one line a problem."""
    model, teacher = config.actor_rollout_ref.model, config.actor_rollout_ref.ref.get("teacher_path")
    lora = model.get("lora", {}).get("rank", 0) > 0 or model.get("lora_rank", 0) > 0 or model.get("lora_adapter_path")
    if teacher and lora:
        yield (
            f"{KEY}={teacher}: with LoRA verl has no reference worker, the reference is the actor without its adapter. "
            "Set it to null, or train all weights."
        )
    same = not teacher or _folder(teacher) == _folder(model.path)
    if same and not lora and not task_coef:
        yield (
            f"{KEY}={teacher}: the teacher is the student as it starts, so every advantage is 0 for ever. Name a "
            "teacher, or set algorithm.paced.task_coef > 0."
        )
    if not same and files:
        yield from _vocabularies(model.path, teacher)


def _vocabularies(student: str, teacher: str) -> Iterator[str]:
    """Of models that are folders here; a hub's are not looked at."""
    for key, path in (("actor_rollout_ref.model.path", student), (KEY, teacher)):
        if os.path.isabs(os.path.expanduser(path)) and not _folder(path).exists():
            yield f"{key}={path} does not exist."
            return
    if not (_folder(student).is_dir() and _folder(teacher).is_dir()):
        return
    from transformers import AutoTokenizer

    own, other = (AutoTokenizer.from_pretrained(_folder(path)).get_vocab() for path in (student, teacher))
    if own != other:
        yield (
            f"{KEY}={teacher}: its vocabulary differs from the student's ({student}). The teacher scores the student's "
            "token ids: use a teacher of the student's family."
        )


def _folder(path: str) -> Path:
    return Path(path).expanduser().resolve()
