"""verl's training set, with what the plugin needs to know of a row."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from paced_verl import fields


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}
