"""Whether a run can measure where its teacher's loss points, between two steps (``paced.alignment.every_steps``)."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from paced_verl.alignment.visits import LEAST
from paced_verl.config import PacedConfig

SINGLE_TURN = "single_turn_agent"
INSTEAD = "Leave it null and measure a checkpoint with `paced-verl align`."


def alignment_problems(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Why this run cannot; nothing where it is not asked to."""
    settings, rollout = paced.alignment, config.actor_rollout_ref.rollout
    if settings.every_steps is None:
        return
    key, mode = f"paced.alignment.every_steps={settings.every_steps}", config.trainer.v1.trainer_mode
    if mode != "paced_sync":
        yield (
            f"{key}: trainer.v1.trainer_mode={mode} has rollouts on their way between two steps, whose servers a "
            f"measurement would share. Use paced_sync, or: {INSTEAD}"
        )
    if paced.teacher.backend == "reference":
        yield (
            f"{key}: paced.teacher.backend=reference is an engine in the trainer's workers, which only answers what "
            f"trains. Use paced.teacher.backend=server or student, or: {INSTEAD}"
        )
    elif paced.teacher.backend == "student" and set(settings.contexts) == {"none"}:
        yield (
            f"{key}: paced.alignment.contexts=['none'] leaves no teacher, since paced.teacher.backend=student sees "
            "nothing more than the student there. Name the contexts to measure, such as [solution]."
        )
    reward = config.reward
    if reward.reward_model.enable or reward.reward_manager.source == "importlib":
        yield f"{key}: continuations are judged by a reward function, and this run has another judge. {INSTEAD}"
    if rollout.agent.default_agent_loop != SINGLE_TURN or rollout.multi_turn.enable:
        yield (
            f"{key}: continuations have one turn, and actor_rollout_ref.rollout.agent.default_agent_loop="
            f"{rollout.agent.default_agent_loop}, multi_turn.enable={rollout.multi_turn.enable}. {INSTEAD}"
        )
    least = settings.questions * 2 * min(LEAST, settings.visits)
    if settings.budget.rollouts is not None and settings.budget.rollouts < least:
        yield (
            f"paced.alignment.budget.rollouts={settings.budget.rollouts} does not pay for one node a question: "
            f"{settings.questions} questions × 2 tokens × {min(LEAST, settings.visits)} visits are {least}. Raise it, "
            "or ask fewer paced.alignment.questions."
        )
