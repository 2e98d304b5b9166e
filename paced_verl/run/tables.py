"""What a run over capabilities keeps of its decisions beside its checkpoints: three tables, for people and its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paced_verl.atomic import replacing
from paced_verl.run.probes import Probed, Probes

FloatArray = npt.NDArray[np.float64]
HISTORY, PROBES, TRANSFER = "history.parquet", "probes.parquet", "transfer.parquet"


class Tables:
    """The tables of a run, each written whole and at once.

    Args:
        folder: Where they are; ``None``: nowhere.
        names: Of the capabilities, C.
    """

    def __init__(self, folder: Path | None, names: Sequence[str]):
        self._folder, self._names = folder, tuple(names)

    def keep_history(self, rows: list[dict[str, Any]]) -> None:
        """A row a decision and capability."""
        self._write(HISTORY, pa.Table.from_pylist(rows))

    def keep_transfer(self, mean: FloatArray, se: FloatArray, decision: int, tokens: float) -> None:
        """T (C, C) as it is believed after a decision: a row for what so many tokens spent on ``by`` add to ``to``."""
        rows = [
            {"to": to, "by": by, "mean": float(mean[i, j]), "se": float(se[i, j])}
            | {"decision": decision, "tokens": tokens}
            for i, to in enumerate(self._names)
            for j, by in enumerate(self._names)
        ]
        self._write(TRANSFER, pa.Table.from_pylist(rows))

    def keep_probes(self, probes: Probes, probed: Probed, decision: int) -> None:
        """Add a row a probe to those of earlier decisions. One that a kill made again replaces its own.

        Args:
            probed: What they have said now.
            decision: Index of the one to come; after the run the number of decisions.
        """
        names = np.array(self._names)[probes.groups]
        columns = {
            "decision": np.full(len(names), decision),
            "capability": names,
            "prompt": probes.which,
            "samples": probed.samples if probed.answered else np.zeros_like(probed.samples),
            "successes": np.where(probed.answered, probed.successes, 0.0),
            "log_likelihood": probed.values,
        }
        table = pa.table(columns)
        if self._folder is not None and decision and (file := self._folder / PROBES).exists():
            table = pa.concat_tables([pq.read_table(file).filter(pc.field("decision") < decision), table])
        self._write(PROBES, table)

    def _write(self, name: str, table: pa.Table) -> None:
        if self._folder is not None:
            with replacing(self._folder / name) as unfinished:
                pq.write_table(table, unfinished)
