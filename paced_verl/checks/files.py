"""Everything outside the configuration that a run reads at its start: data, models, reward function, tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from paced_verl.checks.capability import capability_data
from paced_verl.checks.data import training_data
from paced_verl.checks.models import models
from paced_verl.checks.reward import migrated, reward_function
from paced_verl.checks.scan import Rows
from paced_verl.checks.tables import pass_rates, predictor
from paced_verl.checks.targets import stored_targets
from paced_verl.config import PacedConfig


def file_problems(config: DictConfig, paced: PacedConfig | None) -> list[str]:
    """What is wrong with the files, one sentence each; each step reads what the one before has found to be there.

    Without a block of ours (the advantage, in verl's own trainers): data and reward function alone.
    """
    config = migrated(config)
    if problems := [*_named(config), *training_data(config, paced)]:
        return problems
    rows = Rows.read(config, paced)
    if rows.problems:
        return rows.problems
    if paced is None:
        return list(reward_function(config, rows))
    tables = [*pass_rates(config, paced, rows), *predictor(paced), *capability_data(config, paced)]
    problems = [*tables, *models(config, paced, rows), *reward_function(config, rows)]
    return problems or list(stored_targets(config, paced))


def _named(config: DictConfig) -> Iterator[str]:
    """Files of agent loops and tools, and a checkpoint, that are not where they are said to be."""
    from verl.utils.import_utils import resolve_config_path

    rollout = "actor_rollout_ref.rollout"
    for key in (
        f"{rollout}.agent.agent_loop_config_path",
        f"{rollout}.multi_turn.tool_config_path",
        f"{rollout}.multi_turn.function_tool_path",
    ):
        if path := OmegaConf.select(config, key):
            try:
                found = Path(resolve_config_path(path)).is_file()
            except FileNotFoundError:
                found = False
            if not found:
                yield f"{key}={path}: there is no such file."
    path = config.trainer.resume_from_path
    if config.trainer.resume_mode == "resume_path" and not Path(path).is_dir():
        yield f"trainer.resume_from_path={path}: there is no such folder."
