"""Everything outside the configuration that a run reads at its start: data, models, reward function, tables."""

from __future__ import annotations

from omegaconf import DictConfig

from paced_verl.checks.data import training_data
from paced_verl.checks.models import models
from paced_verl.checks.reward import migrated, reward_function
from paced_verl.checks.scan import Rows
from paced_verl.checks.tables import pass_rates
from paced_verl.checks.targets import stored_targets
from paced_verl.config import PacedConfig


def file_problems(config: DictConfig, paced: PacedConfig | None) -> list[str]:
    """What is wrong with the files, one sentence each; each step reads what the one before has found to be there.

    Without a block of ours (the advantage, in verl's own trainers): data and reward function alone.
    """
    config = migrated(config)
    if problems := list(training_data(config, paced)):
        return problems
    rows = Rows.read(config, paced)
    if rows.problems:
        return rows.problems
    if paced is None:
        return list(reward_function(config, rows))
    problems = [*pass_rates(config, paced, rows), *models(config, paced, rows), *reward_function(config, rows)]
    return problems or list(stored_targets(config, paced))
