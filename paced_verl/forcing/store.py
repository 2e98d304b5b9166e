"""What a measurement has on disk: rollouts in parts that are there whole or not at all, and the nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.alignment.nodes import FEATURES, Node
from paced_verl.alignment.tree import FREE, Rollout
from paced_verl.atomic import replacing
from paced_verl.errors import PacedError
from paced_verl.forcing.ask import Written

ROLLOUTS = pa.schema(
    [
        ("question", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("forced", pa.int32()),
        ("success", pa.float32()),
        ("truncated", pa.bool_()),
        ("generated", pa.int32()),
        ("text", pa.string()),
    ]
)
NODES = pa.schema(
    [
        ("question", pa.int32()),
        ("carrier", pa.int32()),
        ("position", pa.int32()),
        ("inclusion", pa.float64()),
        ("tokens", pa.list_(pa.int64())),
        ("student", pa.list_(pa.float64())),
        ("teachers", pa.list_(pa.list_(pa.float64()))),
        ("known", pa.list_(pa.list_(pa.float64()))),
        ("unasked", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A rollout of a question."""

    question: int
    written: Written


class Store:
    """A folder of one measurement.

    Args:
        folder: Made if it is not there.
        settings: What determines the measurement. A folder of another one is refused.

    Raises:
        PacedError: The folder holds another measurement.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.parts = folder, folder / "rollouts"
        self.parts.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        if file.exists():
            kept = json.loads(file.read_text())
            other = sorted(key for key in {*kept, *settings} if kept.get(key) != settings.get(key))
            if other:
                was = ", ".join(f"{key}={kept.get(key)!r} (now {settings.get(key)!r})" for key in other)
                raise PacedError(f"{folder} holds another measurement: {was}. Choose another --out, or its settings.")
        else:
            with replacing(file) as unfinished:
                unfinished.write_text(json.dumps(settings, indent=1))

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep rollouts, all of them or none."""
        rows = [
            {
                "question": entry.question,
                "tokens": entry.written.rollout.tokens,
                "forced": entry.written.rollout.forced,
                "success": entry.written.rollout.success,
                "truncated": entry.written.truncated,
                "generated": entry.written.generated,
                "text": entry.written.text if entry.written.rollout.forced == FREE else "",
            }
            for entry in entries
        ]
        number = 1 + max((int(file.stem) for file in self.parts.glob("[0-9]*.parquet")), default=-1)
        with replacing(self.parts / f"{number:06d}.parquet") as unfinished:
            pq.write_table(
                pa.Table.from_pylist(rows, ROLLOUTS), unfinished, compression="zstd", write_page_checksum=True
            )

    def entries(self) -> list[Entry]:
        """All rollouts, in the order in which they were kept.

        Raises:
            PacedError: A part is damaged.
        """
        found = []
        for file in sorted(self.parts.glob("[0-9]*.parquet")):
            for row in _read(file, ROLLOUTS):
                rollout = Rollout(tuple(row["tokens"]), row["forced"], row["success"])
                found.append(Entry(row["question"], Written(rollout, row["text"], row["truncated"], row["generated"])))
        return found

    def keep_nodes(self, nodes: Sequence[Node]) -> None:
        """Keep the nodes; they are chosen once."""
        rows = [
            {
                "question": node.question,
                "carrier": node.carrier,
                "position": node.position,
                "inclusion": node.inclusion,
                "tokens": node.tokens.tolist(),
                "student": node.student.tolist(),
                "teachers": node.teachers.tolist(),
                "known": node.known.tolist(),
                "unasked": node.unasked,
            }
            for node in nodes
        ]
        with replacing(self.folder / "nodes.parquet") as unfinished:
            _write(rows, NODES, unfinished)

    def nodes(self) -> list[Node] | None:
        """The nodes; ``None`` where they have not been chosen.

        Raises:
            PacedError: The file is damaged.
        """
        file = self.folder / "nodes.parquet"
        if not file.exists():
            return None
        return [
            Node(
                row["question"],
                row["carrier"],
                row["position"],
                row["inclusion"],
                np.array(row["tokens"], np.int64),
                np.array(row["student"], np.float64),
                np.array(row["teachers"], np.float64).reshape(-1, len(row["tokens"])),
                np.array(row["known"], np.float64).reshape(-1, len(FEATURES)),
                tuple(row["unasked"]),
            )
            for row in _read(file, NODES)
        ]


def _write(rows: list[dict[str, Any]], schema: pa.Schema, file: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd", write_page_checksum=True)


def _read(file: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(file, schema=schema, page_checksum_verification=True).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PacedError(f"{file} is damaged ({error}). Delete it: what it held is then measured again.") from None
    return rows
