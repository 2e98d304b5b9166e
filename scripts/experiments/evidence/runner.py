"""Runs cells, some at a time, and keeps a row of each: whatever is killed goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import polars as pl
import torch

from scripts.experiments.evidence.cells import Cell, by_world
from scripts.experiments.evidence.distil import Distillation
from scripts.experiments.evidence.world import World, build


@functools.cache
def fingerprint() -> str:
    """Of the code that makes a run: rows of other code are no rows of this programme."""
    parts = ("problems", "model", "regimes", "world", "arms", "distil")
    sources = b"".join((Path(__file__).with_name(f"{part}.py")).read_bytes() for part in parts)
    return hashlib.sha256(sources).hexdigest()[:8]


def todo(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not (folder / "rows" / f"{key(cell.columns())}.json").exists()]


def restore(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Put rows of this code that are in the tables back into the folder, so that they are not run again."""
    for row in rows:
        file = folder / "rows" / f"{key(row)}.json"
        if row["code"] == fingerprint() and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row))


def keep(folder: Path, tables: Path) -> None:
    """Write the folder's rows to a table a part of the programme, in a fixed order."""
    rows = [json.loads(file.read_text()) for file in sorted((folder / "rows").glob("*.json"))]
    tables.mkdir(parents=True, exist_ok=True)
    for part in sorted({row["experiment"] for row in rows}):
        frame = pl.DataFrame([row for row in rows if row["experiment"] == part], infer_schema_length=None)
        frame.write_parquet(tables / f"{part}.parquet", compression_level=19)


def run(cells: Sequence[Cell], folder: Path, processes: int) -> Iterator[int]:
    """Run what has no row in the folder; yields how many more have one, world by world."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running = [pool.submit(in_world, group, folder) for group in by_world(todo(cells, folder))]
        for done in as_completed(running):
            yield done.result()


def in_world(cells: Sequence[Cell], folder: Path) -> int:
    """Run cells that share a world, and keep a row each; returns how many."""
    torch.set_num_threads(1)  # at these sizes threads cost more than they give
    world = build(cells[0].world(), cells[0].family, cells[0].seed, folder / "models")
    for cell in cells:
        one(cell, world, folder)
    return len(cells)


def one(cell: Cell, world: World, folder: Path) -> Path:
    """Run a cell and keep its row; returns the file."""
    distillation = Distillation(world, cell.treatment(), cell.stages, cell.length, cell.seed, cell.rate)
    found = distillation.run(cell.points())
    kinds = {
        name: (world.kind == i).float().mean().item() for i, name in enumerate(("hopeless", "frontier", "mastered"))
    }
    shares = {"teacher_right": 1 - world.wrong_teacher.float().mean().item()} | kinds
    made_by = {"code": fingerprint(), "torch": torch.__version__}
    file = folder / "rows" / f"{key(cell.columns())}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(cell.columns() | shares | found | made_by))
    unfinished.rename(file)
    return file


def key(columns: Mapping[str, Any]) -> str:
    """A file name of its own for what a cell, or a row, says it is."""
    parts = [columns[field.name] for field in dataclasses.fields(Cell)]
    return re.sub(r"[^\w.=-]+", "-", "_".join(map(str, parts)))
