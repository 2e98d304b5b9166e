"""verl's training set, with what the plugin needs to know of a row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from paced_verl import fields
from paced_verl.capability.curriculum import Levels
from paced_verl.capability.table import Capabilities
from paced_verl.checks.rows import values
from paced_verl.config import CapabilityConfig
from paced_verl.errors import PacedError
from paced_verl.fingerprint import prompt_hash, template_hash


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}


def capabilities_of(dataset: Any, settings: CapabilityConfig, seed: int) -> tuple[Capabilities, Levels | None]:
    """The capabilities of verl's data set, with probes set apart where there are any, and its levels of difficulty.

    Args:
        dataset: verl's, of the rows that it has kept.
        settings: ``paced.capability``.
        seed: Of the probes.

    Raises:
        PacedError: A column says something else than the settings do, or there are too few prompts.
    """
    found = Capabilities.read(_column(dataset, settings.column, "column"), settings.column, settings.match)
    of = settings.curriculum
    levels = None
    if of is not None:
        levels = Levels.read(_column(dataset, of.column, "curriculum.column"), of.column, of.order, of.by)
    if settings.probe is None:
        return found, levels
    prompts = list(dataset.dataframe[dataset.prompt_key])
    hashes, templates = list(map(prompt_hash, prompts)), list(map(template_hash, prompts))
    apart = found.set_apart(settings.probe.prompts, hashes, seed, templates)
    if apart.alike:
        print(
            f"[paced] {', '.join(apart.alike)}: most training prompts differ from a probe in numbers only, as where "
            "one generator wrote them; they are trained, and probes say less of what is new to the student",
            flush=True,
        )
    return apart, levels


def _column(dataset: Any, path: str, key: str) -> pa.Array:
    rows, first = dataset.dataframe, path.split(".")[0]
    if first not in rows.column_names:
        raise PacedError(
            f"paced.capability.{key}={path}: the training data have no such column; they have "
            f"{', '.join(rows.column_names)}."
        )
    (block,) = rows.select_columns([first]).with_format("arrow")[:].combine_chunks().to_batches()
    return values(block, path)
