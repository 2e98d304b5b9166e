"""Whether verl, in this version, would load the plugin."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator

from paced_verl.config import ConfigError

VERL_VERSION = "0.9.1"
USED = (
    "launch.plan",
    "training.trainer",
    "training.rollout",
    "training.worker",
    "training.loss",
    "advantage.estimator",
)
"""The modules that verl's processes import of ours."""


def plugin_problems() -> Iterator[str]:
    """Why verl would not load the plugin, here or in the processes that Ray starts."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if "paced" not in {point.name for point in importlib.metadata.entry_points(group="verl.plugins")}:
        yield "paced-verl is not installed as a verl plugin (entry point verl.plugins: paced). Install it with pip."
    if policy == "none" or (policy != "auto" and "paced" not in policy.split(",")):
        yield f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading paced-verl. Unset it, or add paced to it."


def version_problems() -> Iterator[str]:
    """Why this environment is not the one that paced-verl is written for."""
    yield from plugin_problems()
    installed = importlib.metadata.version("verl")
    if installed != VERL_VERSION:
        yield (
            f"verl {installed} is installed; paced-verl is written for and tested on verl {VERL_VERSION}: "
            f"pip install verl=={VERL_VERSION}"
        )


def load() -> None:
    """Import what a run will import in Ray's processes: there, an error would come after the GPUs are taken.

    Raises:
        ConfigError: A module does not import.
    """
    for name in USED:
        try:
            importlib.import_module(f"paced_verl.{name}")
        except Exception as error:
            raise ConfigError(f"paced_verl.{name} does not load: {type(error).__name__}: {error}") from error
