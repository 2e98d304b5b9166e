"""What becomes of settings of verl that a run does not run as written: replaced or ignored, and why. No silence.

Whatever a person must decide, or would fail, is refused instead (:mod:`paced_verl.checks`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

Replacement = tuple[str, Any, str]
"""A key, the value it must have in this run, and why."""


@dataclass(frozen=True)
class Verdict:
    """A setting that does not run as written.

    Attributes:
        key: Its dotted key.
        value: As written.
        why: In half a sentence.
        becomes: What takes its place, where anything does.
        replaced: Whether anything does; else it has no effect.
    """

    key: str
    value: Any
    why: str
    becomes: Any = None
    replaced: bool = False

    def __str__(self) -> str:
        if self.replaced:
            return f"replaced: {self.key}: {_shown(self.value)} → {_shown(self.becomes)} ({self.why})"
        return f"ignored: {self.key}={_shown(self.value)} ({self.why})"


def _shown(value: Any) -> str:
    if OmegaConf.is_config(value):
        return str(OmegaConf.to_container(value, resolve=True))
    return "null" if value is None else str(value)


def replace(config: DictConfig, replacements: Iterable[Replacement]) -> Iterator[Verdict]:
    """Set each key to the value it must have, in place; yields those that had another. Doing it again yields none."""
    for key, wanted, why in replacements:
        value = OmegaConf.select(config, key)
        if value != wanted:
            with open_dict(config):
                OmegaConf.update(config, key, wanted, force_add=True)
            yield Verdict(key, value, why, wanted, replaced=True)


def ignore(config: DictConfig, keys: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
    """Those of the keys, given with the reason why nothing reads them, that are not at verl's default."""
    for key, why in keys:
        value = OmegaConf.select(config, key)
        if value != OmegaConf.select(_verls_defaults(), key):
            yield Verdict(key, value, why)


@functools.cache
def _verls_defaults() -> DictConfig:
    defaults = OmegaConf.load(str(resources.files("verl.trainer.config") / "_generated_ppo_trainer.yaml"))
    assert isinstance(defaults, DictConfig)
    return defaults
