"""What a paced run sets in verl's configuration before verl reads it, beside what the ``paced`` group wrote there."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from paced_verl.config import PacedConfig


def wire(config: DictConfig, paced: PacedConfig, base_mode: str) -> None:
    """Prepare a checked configuration for verl's trainer, in place.

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
        elif paced.teacher.backend == "student" or paced.route is not None:
            # The rollout servers score, too: vLLM allows 20 log-probabilities by default.
            kwargs = rollout.engine_kwargs.setdefault("vllm", {})
            kwargs["max_logprobs"] = max(kwargs.get("max_logprobs", 0), paced.teacher.topk)


def _no_pool(config: DictConfig) -> None:
    """verl checks teacher and pool against each other even where the trainer starts neither."""
    teacher = config.distillation.teacher_models.teacher_model
    teacher.model_path = teacher.model_path or config.actor_rollout_ref.model.path
    teacher.inference.max_model_len = None
    inference = teacher.inference
    config.distillation.nnodes = 1
    config.distillation.n_gpus_per_node = inference.tensor_model_parallel_size * inference.data_parallel_size
