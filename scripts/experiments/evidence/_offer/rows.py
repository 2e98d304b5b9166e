"""Where runs go: a line of JSON each, as soon as it is known; then a parquet file a part, which is committed.

A run that is killed loses the run it was at. A line cut short is no row. What is resumed is told by a run's key: its cell,
and a fingerprint of everything that it was set to, so that a run with other settings is not taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from paced_verl.atomic import replacing

Row = dict[str, Any]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of settings as JSON would hold them."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(folder: Path, row: Row) -> None:
    """Add a row to this process's file, on the disk before this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{os.getpid()}.jsonl", "ab") as file:
        if file.tell() and not _ends_a_line(Path(file.name)):
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def appended(folder: Path) -> list[Row]:
    """Every whole row of a folder."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut short by a kill, or empty
    return [row for row in found if isinstance(row, dict)]


def load(file: Path) -> list[Row]:
    """The rows of a parquet file; none where there is no file."""
    return pl.read_parquet(file).to_dicts() if file.exists() else []


def compact(file: Path, folder: Path) -> int:
    """Bring what was appended into the parquet file, one row a key and sorted by it; returns how many it has."""
    by_key = {row["key"]: row for row in [*load(file), *appended(folder)]}
    if not by_key:
        return 0
    order = sorted(by_key.values(), key=lambda row: (row["regime"], row["stages"], row["arm"], row["seed"], row["key"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as unfinished:
        pl.DataFrame(order, infer_schema_length=None).write_parquet(unfinished, compression="zstd")
    for path in folder.glob("*.jsonl"):
        path.unlink()
    return len(order)
