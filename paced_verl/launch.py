"""Hydra's side: compose a run's configuration, and check every paced run where it is composed, before Ray starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from paced_verl.config import ConfigError


def compose(overrides: list[str], config_name: str = "ppo_trainer", config_path: Path | None = None) -> DictConfig:
    """Compose a run's configuration as verl's launcher would, paced or not.

    Args:
        overrides: As given to ``python -m verl.trainer.main_ppo``.
        config_name: Hydra's ``--config-name``.
        config_path: Hydra's ``--config-path``; verl's own folder by default.

    Raises:
        hydra.errors.HydraException: It does not compose.
    """
    import verl  # noqa: F401  (with verl come the plugins)

    where = (
        hydra.initialize_config_dir(str(config_path.resolve()), version_base=None)
        if config_path
        else hydra.initialize_config_module("verl.trainer.config", version_base=None)
    )
    with where:
        return hydra.compose(config_name, overrides)


def describe(config: DictConfig) -> str:
    """What a configuration will run, in words.

    Raises:
        ConfigError: It cannot run as written.
    """
    if "paced" in config.algorithm:
        from paced_verl import advantage

        return advantage.describe(config, advantage.check(config))
    from paced_verl.plan import Plan

    return str(Plan.of(config))


class PacedCallback(Callback):
    """Checks a paced run where its configuration is composed, and says what will run.

    All ``paced`` groups install it (``hydra.callbacks.paced``). Hydra turns exceptions of callbacks into warnings; an
    exit is not an exception, so that is what a wrong configuration gets.
    """

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        try:
            from paced_verl.checks.environment import load

            load()
            plan = describe(config)
        except ConfigError as error:
            lines = "\n".join(f"  - {line}" for line in str(error).splitlines())
            raise SystemExit(f"paced-verl: this configuration cannot run as written.\n{lines}") from None
        print(plan, flush=True)
