"""What can be known to be wrong before a GPU is taken: key, value, what was expected, what to do."""

from __future__ import annotations

from omegaconf import DictConfig

from paced_verl import resume
from paced_verl.checks.data import number_of_prompts, stored_files, training_data
from paced_verl.checks.environment import VERL_VERSION, plugin_problems, version_problems
from paced_verl.checks.models import models
from paced_verl.checks.settings import LOSS_MODE, TRAINER_MODES, conflicts, wiring
from paced_verl.checks.teacher import teacher_paths, teacher_problems
from paced_verl.config import ConfigError, PacedConfig

__all__ = [
    "LOSS_MODE",
    "TRAINER_MODES",
    "VERL_VERSION",
    "check",
    "check_length",
    "number_of_prompts",
    "plugin_problems",
    "teacher_paths",
    "version_problems",
]


def check(config: DictConfig) -> PacedConfig:
    """Check a composed verl configuration that is to have a ``paced`` block.

    Returns:
        The parsed block.

    Raises:
        ConfigError: One problem a line.
    """
    if "paced" not in config:
        raise ConfigError("There is no paced block here, and verl would run without PACED. Add +paced=two_stage.")
    paced = PacedConfig.parse(config.paced)
    problems = [
        *version_problems(),
        *wiring(config, paced),
        *conflicts(config, paced),
        *teacher_problems(config, paced),
        *stored_files(config, paced),
        *resume.problems(config, paced),
    ]
    # Each step reads what the one before has found to be there.
    for step in (training_data, models):
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
