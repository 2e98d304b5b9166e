"""The advantage's two places in verl: its estimator, and a teacher for the reference worker.

verl 0.9.1 builds the reference worker from the actor's ``model`` configuration, whatever its path; with
``actor_rollout_ref.ref.teacher_path`` it loads that model. Every other key of ``model`` and ``ref`` (attention, dtype,
offload, micro-batches) keeps its meaning for the teacher.
"""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from paced_verl.names import ESTIMATOR

KEY = "actor_rollout_ref.ref.teacher_path"


def install_estimator(ray_trainer: ModuleType) -> None:
    """Have ``verl.trainer.ppo.ray_trainer.compute_advantage`` hand the two log-probabilities to this estimator.

    verl passes registered estimators rewards, mask and groups only. Every other estimator goes through verl's function
    as it is. To be called before ``verl.trainer.ppo.v1`` imports that function by name.
    """
    from paced_verl.advantage.estimator import estimate_paced_advantage

    stock: Any = ray_trainer.compute_advantage

    @functools.wraps(stock)
    def compute_advantage(data: Any, adv_estimator: Any, *args: Any, **kwargs: Any) -> Any:
        if adv_estimator != ESTIMATOR:
            return stock(data, adv_estimator, *args, **kwargs)
        data.batch["advantages"], data.batch["returns"] = estimate_paced_advantage(
            token_level_rewards=data.batch["token_level_rewards"],
            response_mask=data.batch["response_mask"],
            index=data.non_tensor_batch["uid"],
            config=kwargs["config"],
            old_log_probs=data.batch["old_log_probs"],
            ref_log_prob=data.batch.get("ref_log_prob", None),
        )
        return data

    ray_trainer.compute_advantage = compute_advantage  # type: ignore[attr-defined]


def install_teacher_path(engine_workers: ModuleType) -> None:
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
