"""Hydra's side: compose a run's configuration, and check every paced run where it is composed, before Ray starts."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from paced_verl.errors import PacedError

LAUNCHER = "verl.trainer.main_ppo"


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


def describe(config: DictConfig, files: bool = True) -> str:
    """Settle a composed configuration in place, check it, and say what it will run.

    Args:
        config: verl's whole configuration.
        files: Look at data, models and stored files, too.

    Raises:
        ConfigError: It cannot run as written.
    """
    if isinstance(config.algorithm, DictConfig) and "paced" in config.algorithm:
        from paced_verl.advantage import checks

        return checks.describe(config, *checks.check(config, files))
    from paced_verl.launch.plan import Plan

    return str(Plan.of(config, files))


def _set_hydra(config: DictConfig) -> None:
    """Let ``${hydra:…}`` resolve as it will in the job: Hydra's ``run_job`` sets this after ``on_run_start``."""
    HydraConfig.instance().set_config(config)
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.path.abspath(config.hydra.run.dir)
    HydraConfig.instance().set_config(config)


def _launcher() -> str:
    """The module that this process runs, by ``python -m`` or by its path; empty where that is not known."""
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):
        return str(spec.name)
    import verl

    file, package = Path(getattr(main, "__file__", None) or "").resolve(), Path(verl.__file__).resolve().parent
    inside = file.relative_to(package.parent).with_suffix("") if file.is_relative_to(package) else Path()
    return ".".join(inside.parts)


def fork_workers(config: DictConfig) -> None:
    """On a CPU machine that is the whole cluster, have Ray's workers forked off one process that has all imports."""
    settings = config.ray_kwargs.get("ray_init") or {}
    own = settings.get("runtime_env") or {}
    elsewhere = os.environ.get("RAY_ADDRESS") or settings.get("address")
    if os.environ.get("VERL_PLATFORM") != "cpu" or elsewhere or own.get("py_executable"):
        return
    from paced_verl.cpu import forked_python

    python = f"{shlex.quote(sys.executable)} -IS {shlex.quote(forked_python.__file__)}"
    with read_write(config), open_dict(config):
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.py_executable", python)


class PacedCallback(Callback):
    """Settles and checks a paced run where its configuration is composed, and says what will run.

    All ``paced`` groups install it (``hydra.callbacks.paced``). It does so when the run starts: then Hydra still hands
    out the configuration that the job will get, later a copy. Hydra turns exceptions of callbacks into warnings; an
    exit is not an exception, so that is what a wrong configuration gets, and one that cannot be checked.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        module = _launcher()
        if module.startswith("verl.") and module != LAUNCHER:
            raise SystemExit(
                f"paced-verl: {module} runs trainers of its own, which know nothing of +paced. Launch with "
                f"python -m {LAUNCHER}; trainer.v1.trainer_mode=paced_separate_async is asynchronous, too."
            )
        try:
            from paced_verl.checks import refuse
            from paced_verl.checks.environment import load
            from paced_verl.checks.verl import device

            load()
            if "hydra" in config:  # not where somebody else composed it
                _set_hydra(config)
            fork_workers(config)
            plan = describe(config)
            refuse(device(config))
            print(plan, flush=True)
        except PacedError as error:
            lines = "\n".join(f"  - {line}" for line in str(error).splitlines())
            raise SystemExit(f"paced-verl: this configuration cannot run as written.\n{lines}") from None
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            raise SystemExit(
                f"paced-verl: this configuration could not be checked: {type(error).__name__}: {error}\n"
                "Nothing was started. HYDRA_FULL_ERROR=1 in the environment shows where it happened."
            ) from None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        raise SystemExit("paced-verl: --multirun would start runs that nobody has checked. Launch them one by one.")
