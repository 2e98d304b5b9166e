"""What can be known to be wrong before a GPU is taken: key, value, what was expected, what to do."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from paced_verl import resume
from paced_verl.checks.data import number_of_prompts
from paced_verl.checks.environment import VERL_VERSION, plugin_problems, version_problems
from paced_verl.checks.files import file_problems
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
    block = OmegaConf.to_container(config.paced, resolve=True)
    assert isinstance(block, dict)
    paced = PacedConfig.parse({str(key): value for key, value in block.items()})
    problems = [
        *version_problems(),
        *wiring(config, paced),
        *conflicts(config, paced),
        *teacher_problems(config, paced),
        *resume.problems(config, paced),
    ]
    if problems := problems or file_problems(config, paced):
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
