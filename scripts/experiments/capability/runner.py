"""Runs cells and keeps a row of each: whatever is killed goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import polars as pl
import torch

from scripts.experiments.capability import world as worlds
from scripts.experiments.capability.distil import Distillation
from scripts.experiments.capability.programme import Cell
from scripts.experiments.capability.world import World

HERE = Path(__file__).parent
SOURCES = (
    *(HERE / f"{part}.py" for part in ("problems", "world", "distil")),
    *(HERE.parent / "evidence" / f"{part}.py" for part in ("problems", "model")),
)


@functools.cache
def fingerprint() -> str:
    """Of the code that makes a run: rows of other code are no rows of this programme."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()[:8]


def todo(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not _file(cell.columns(), folder).exists()]


def restore(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Put rows of this code that are in the committed table back into the folder, so that they are not run again."""
    for row in rows:
        file = _file(row, folder)
        if row["code"] == fingerprint() and not file.exists():
            _write(row, file)


def keep(folder: Path, table: Path) -> None:
    """Write the folder's rows to the table, in a fixed order."""
    rows = [json.loads(file.read_text()) for file in sorted((folder / "rows").glob("*.json"))]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(table, compression_level=19)


def run(cells: Sequence[Cell], folder: Path, processes: int, hasty: bool = False) -> Iterator[int]:
    """Run what has no row in the folder; yields how many more have one, world by world."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    groups = [list(group) for _, group in itertools.groupby(todo(cells, folder), key=lambda cell: cell.seed)]
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(in_world, group, folder, hasty) for group in groups]):
            yield done.result()


def in_world(cells: Sequence[Cell], folder: Path, hasty: bool = False) -> int:
    """Run cells of one seed, and keep a row each; returns how many. ``hasty``: the models have hardly learned."""
    torch.set_num_threads(1)  # at these sizes threads cost more than they give
    if hasty:  # in a process of its own
        worlds.STUDENT_STEPS, worlds.TEACHER_STEPS = 40, 60
    world = worlds.build(cells[0].seed, folder / "models")
    for cell in cells:
        one(cell, world, folder)
    return len(cells)


def one(cell: Cell, world: World, folder: Path) -> dict[str, Any]:
    """Run a cell and keep its row, which is returned."""
    found = Distillation(world, cell.plan(), cell.seed).run()
    row = cell.columns() | found | {"code": fingerprint(), "torch": torch.__version__}
    _write(row, _file(row, folder))
    return row


def _file(row: Mapping[str, Any], folder: Path) -> Path:
    name = "_".join(str(row[column]) for column in ("phase", "arm", "seed", "decisions")).replace(" ", "-")
    return folder / "rows" / f"{name}.json"


def _write(row: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(row))
    unfinished.rename(file)
