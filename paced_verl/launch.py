"""A check of every paced run where its configuration is composed, before Ray starts."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


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
