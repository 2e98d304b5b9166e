"""What is known to be wrong with ``paced.capability`` before a GPU is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
from omegaconf import DictConfig

from paced_verl.capability.curriculum import Levels
from paced_verl.capability.table import Capabilities
from paced_verl.checks.data import UNREADABLE, is_own, local_files
from paced_verl.checks.rows import blocks, values
from paced_verl.config import CapabilityConfig, ConfigError, PacedConfig
from paced_verl.errors import PacedError

MOST_PROBES = 0.25
"""Of the responses that a run trains on."""


def capability_problems(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Settings that contradict each other."""
    settings = paced.capability
    if settings is None:
        return
    rows = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    if (config.algorithm.get("filter_groups") or {}).get("enable"):
        yield (
            "algorithm.filter_groups.enable=True drops groups after they were drawn, more of one capability than of "
            "another, so that no share would be what paced.capability has decided. Set it to False (prompts of weight "
            "0 are not drawn anyway), or paced.capability to null."
        )
    if is_own(config):
        yield (
            f"paced.capability.column={settings.column} is read off verl's own data set; data.custom_cls.path="
            f"{config.data.custom_cls.path} may have no columns. Set paced.capability to null, or take the class away."
        )
    if settings.budget is not None:
        mode = config.trainer.v1.trainer_mode
        if mode != "paced_sync":
            yield (
                f"paced.capability.budget={settings.budget}: with trainer.v1.trainer_mode={mode} rows of later steps "
                "are under way when a step's are counted. Use paced_sync, or no budget."
            )
        decision = settings.every_steps * rows * config.data.max_response_length
        if settings.budget < decision:
            yield (
                f"paced.capability.budget={settings.budget}: {settings.every_steps} steps of {rows} rows, one "
                f"decision, may train on {decision} tokens (data.max_response_length="
                f"{config.data.max_response_length}). Give it as many, or lower paced.capability.every_steps."
            )


def capability_data(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """What the training files say otherwise than the settings do. They have been found to be readable."""
    settings = paced.capability
    if settings is None or is_own(config):
        return
    try:
        yield from _problems_of(capabilities_of_files(config, settings), config, settings)
        if (of := settings.curriculum) is not None:
            Levels.read(_read(config, of.column, "curriculum.column"), of.column, of.order, of.by)
    except PacedError as error:
        yield f"paced.capability: {error}"


def capabilities_of_files(config: DictConfig, settings: CapabilityConfig) -> Capabilities:
    """The capabilities of the training files, before verl filters rows and before probes are set apart.

    Raises:
        PacedError: The column says something else than the settings do.
    """
    return Capabilities.read(_read(config, settings.column, "column"), settings.column, settings.match)


def _read(config: DictConfig, path: str, key: str) -> pa.Array:
    """A column of the training files, as text."""
    files, first = local_files(config, "train_files"), path.split(".")[0]
    try:
        columns = [values(block, path) for file in files for block in blocks(file, [first])]
    except UNREADABLE as error:
        raise PacedError(f"{key}={path} cannot be read: {error}") from None
    texts = chain.from_iterable(column.to_pylist() for column in columns)
    return pa.array([None if text is None else str(text) for text in texts])


def _problems_of(found: Capabilities, config: DictConfig, settings: CapabilityConfig) -> Iterator[str]:
    for shares in (settings.requirement, settings.mix):
        found.vector(shares or {})
    if (least := settings.floor * len(found.names)) > 1:
        yield (
            f"paced.capability.floor={settings.floor:g}: {len(found.names)} capabilities with so much each would have "
            f"{least:g} of the tokens in all. Lower it to {1 / len(found.names):.2g} or less, or put values together "
            "with paced.capability.match."
        )
    if settings.probe is None:
        return
    for name, size in zip(found.names, found.sizes.tolist(), strict=True):
        if size <= settings.probe.prompts:
            yield (
                f"paced.capability.probe.prompts={settings.probe.prompts}: capability {name!r} has {size} training "
                "prompts, and one at least must be left to train. Lower it, or add rows."
            )


def probe_responses(settings: CapabilityConfig, capabilities: int, steps: int) -> int:
    """Responses to probes in a whole run: before each decision and once more after it; 0 without probes."""
    if settings.probe is None:
        return 0
    return capabilities * settings.probe.prompts * settings.probe.responses(settings.decisions(steps) + 1)


def check_probes(settings: CapabilityConfig, capabilities: int, rows: Sequence[int]) -> None:
    """Raise where probes cost more than a quarter of what trains.

    Args:
        settings: ``paced.capability``.
        capabilities: Number of them.
        rows: Responses that each step trains on.

    Raises:
        ConfigError: They do.
    """
    asked, trained = probe_responses(settings, capabilities, len(rows)), sum(rows)
    if settings.probe is not None and asked > MOST_PROBES * trained:
        decisions = settings.decisions(len(rows))
        raise ConfigError(
            f"paced.capability.probe: {capabilities} capabilities × {settings.probe.prompts} prompts × "
            f"{settings.probe.in_words}, before {decisions} decision(s) and after the last, are {asked:,} responses, "
            f"beside {trained:,} that train: more than a quarter. Raise paced.capability.every_steps, lower "
            "probe.prompts or probe.samples, or give the run more steps."
        )
