"""verl's training set, with what the plugin needs to know of a row."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from paced_verl import fields
from paced_verl.capability.table import Capabilities
from paced_verl.checks.rows import values
from paced_verl.config import CapabilityConfig
from paced_verl.errors import PacedError
from paced_verl.fingerprint import prompt_hash


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}


def capabilities_of(dataset: Any, settings: CapabilityConfig, seed: int) -> Capabilities:
    """The capabilities of verl's data set, with probes set apart where there are any.

    Args:
        dataset: verl's, of the rows that it has kept.
        settings: ``paced.capability``.
        seed: Of the probes.

    Raises:
        PacedError: The column says something else than the settings do, or there are too few prompts.
    """
    rows, first = dataset.dataframe, settings.column.split(".")[0]
    if first not in rows.column_names:
        raise PacedError(
            f"paced.capability.column={settings.column}: the training data have no such column; they have "
            f"{', '.join(rows.column_names)}."
        )
    (block,) = rows.select_columns([first]).with_format("arrow")[:].combine_chunks().to_batches()
    found = Capabilities.read(values(block, settings.column), settings.column, settings.match)
    if settings.probe is None:
        return found
    hashes = [prompt_hash(messages) for messages in rows[dataset.prompt_key]]
    return found.set_apart(settings.probe.prompts, hashes, seed)
