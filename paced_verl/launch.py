"""Hydra's side of the plugin: where its configuration groups live, and a check of every paced run before Ray starts."""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig


class PacedSearchPath(SearchPathPlugin):
    """Adds the configuration groups of the wheel (``paced``, ``machine``), and verl's own for recipes in other folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("paced-verl", "pkg://paced_verl.configs")
        search_path.append("paced-verl", "pkg://verl.trainer.config")


class PacedCallback(Callback):
    """Checks a paced run where its configuration is composed, and says what will run.

    The ``paced`` groups install it (``hydra.callbacks.paced``). Hydra turns exceptions of callbacks into warnings; an
    exit is not an exception, so that is what a wrong configuration gets.
    """

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        from paced_verl.config import ConfigError
        from paced_verl.plan import Plan

        try:
            plan = Plan.of(config)
        except ConfigError as error:
            lines = "\n".join(f"  - {line}" for line in str(error).splitlines())
            raise SystemExit(f"paced-verl: this configuration cannot run as written.\n{lines}") from None
        print(plan, flush=True)
