"""What can be known to be wrong before a GPU is taken: key, value, what was expected, what to do."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from omegaconf import DictConfig

from paced_verl.checks import resume, verl
from paced_verl.checks.alignment import alignment_problems
from paced_verl.checks.capability import capability_problems
from paced_verl.checks.data import number_of_prompts
from paced_verl.checks.environment import VERL_VERSION, plugin_problems, version_problems
from paced_verl.checks.files import file_problems
from paced_verl.checks.settings import conflicts
from paced_verl.checks.teacher import teacher_problems
from paced_verl.config import ConfigError, PacedConfig
from paced_verl.config.verdicts import Verdict
from paced_verl.config.wiring import settle, wire

__all__ = [
    "VERL_VERSION",
    "check",
    "check_length",
    "number_of_prompts",
    "plugin_problems",
    "refuse",
    "refuse_strictly",
    "version_problems",
]


def check(config: DictConfig, files: bool = True) -> tuple[PacedConfig, list[Verdict]]:
    """Settle a composed configuration in place (:func:`paced_verl.config.wiring.settle`), and check what it then is.

    Args:
        config: verl's whole configuration, with a ``paced`` block.
        files: Look at data, models and stored files, too. The driver does not: the launcher has.

    Returns:
        The parsed block, and which settings do not run as written.

    Raises:
        ConfigError: One problem a line.
    """
    if "paced" not in config:
        raise ConfigError("There is no paced block here, and verl would run without PACED. Add +paced=two_stage.")
    paced = PacedConfig.parse(config.paced)
    # Each question reads what the ones before have found to be there, and to be of the right kind.
    refuse(version_problems())
    refuse(verl.blocks(config))
    refuse(verl.engines(config))
    refuse([*verl.numbers(config), *verl.names(config)])
    verdicts = settle(config, paced)
    refuse_strictly(paced.strict, verdicts)
    mode = config.trainer.v1.trainer_mode
    refuse(
        [
            *conflicts(config, paced),
            *capability_problems(config, paced),
            *verl.shapes(config, mode),
            *verl.lengths(config),
            *teacher_problems(config, paced),
            *alignment_problems(config, paced),
        ]
    )
    wired = copy.deepcopy(config)
    wire(wired, paced, mode.removeprefix("paced_"))
    refuse(verl.verls_own(wired))
    if files:
        refuse(resume.problems(config, paced))
        refuse(file_problems(config, paced))
    return paced, verdicts


def refuse(problems: Iterable[str]) -> None:
    """Raise a :class:`ConfigError` if there are any problems, one a line."""
    if lines := list(problems):
        raise ConfigError("\n".join(lines))


def refuse_strictly(strict: bool, verdicts: list[Verdict]) -> None:
    """Refuse what does not run as written, where ``strict`` asks for it."""
    if strict:
        refuse(f"{verdict}. strict: true refuses what does not run as written." for verdict in verdicts)


def check_length(most_steps: int, total_steps: int) -> None:
    """Raise where verl would end the run before its schedule does.

    Args:
        most_steps: Steps in ``trainer.total_epochs`` epochs.
        total_steps: ``trainer.total_training_steps``, which the schedule covers.
    """
    if most_steps == 0:
        raise ConfigError("data.train_batch_size exceeds the number of training prompts: there is no whole batch.")
    if total_steps > most_steps:
        raise ConfigError(
            f"trainer.total_training_steps={total_steps}, but trainer.total_epochs end after {most_steps} steps and "
            "verl stops at whichever comes first: the schedule would never reach its end. Raise trainer.total_epochs."
        )
