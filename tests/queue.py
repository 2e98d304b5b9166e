"""TransferQueue's interface to rows by key, in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta


class Queue:
    """Rows by key, a dictionary of fields each.

    Attributes:
        cleared: Keys that were cleared.
    """

    def __init__(self, rows: dict[str, dict[str, Any]]):
        self.rows, self.cleared = rows, []

    def replace(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        """Put this queue in the place of a module's ``tq``."""
        monkeypatch.setattr(module, "tq", self)

    @property
    def batch(self) -> KVBatchMeta:
        """All rows."""
        return KVBatchMeta(partition_id="train", keys=list(self.rows), tags=[{} for _ in self.rows])

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        columns = {name: _column([self.rows[key][name] for key in keys]) for name in select_fields}
        return TensorDict(columns, batch_size=len(keys))

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        for name, column in fields.items():
            for key, value in zip(keys, column.unbind(), strict=True):
                self.rows[key][name] = value
        return self.batch

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        self.cleared += keys


def _column(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)
    return NonTensorStack(*(NonTensorData(value) for value in values))
