"""Runs cells, some at a time, and keeps a row of each: whatever is killed goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.experiments import rows
from scripts.experiments.evidence.cells import Cell, by_world
from scripts.experiments.evidence.distil import Distillation
from scripts.experiments.evidence.world import World, build

SOURCES = [
    Path(__file__).with_name(f"{part}.py")
    for part in ("problems", "model", "regimes", "world", "arms", "predicted", "distil")
]


@functools.cache
def fingerprint() -> str:
    """Of the code that makes a run."""
    return rows.fingerprint(SOURCES)


def todo(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not place(cell.columns(), folder).exists()]


def restore(known: Sequence[rows.Row], folder: Path) -> None:
    """Put rows of this code that are in the tables back into the folder, so that they are not run again."""
    rows.restore(known, fingerprint(), lambda row: place(row, folder))


def keep(folder: Path, tables: Path, cells: Sequence[Cell]) -> None:
    """Write the folder's rows of these cells to a table a part of the programme."""
    wanted = {key(cell.columns()) for cell in cells}
    found = [row for row in rows.read(folder / "rows") if key(row) in wanted]
    tables.mkdir(parents=True, exist_ok=True)
    for part in sorted({row["experiment"] for row in found}):
        rows.write_table([row for row in found if row["experiment"] == part], tables / f"{part}.parquet")


def compared(known: Sequence[rows.Row], cells: Sequence[Cell]) -> tuple[int, int]:
    """How many cells have no row, and how many rows are none of the cells' or twice there."""
    wanted, there = {key(cell.columns()) for cell in cells}, [key(row) for row in known]
    return len(wanted - set(there)), len(there) - len(wanted & set(there))


def run(cells: Sequence[Cell], folder: Path, processes: int) -> Iterator[int]:
    """Run what has no row in the folder; yields how many more have one, world by world."""
    return rows.in_processes(in_world, [(group, folder) for group in by_world(todo(cells, folder))], processes)


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
    file = place(cell.columns(), folder)
    rows.write(cell.columns() | shares | found | made_by, file)
    return file


def place(columns: Mapping[str, Any], folder: Path) -> Path:
    """The file of a cell's row, or of a row."""
    return folder / "rows" / f"{key(columns)}.json"


def key(columns: Mapping[str, Any]) -> str:
    """A file name of its own for what a cell, or a row, says it is."""
    parts = [columns[field.name] for field in dataclasses.fields(Cell)]
    return re.sub(r"[^\w.=-]+", "-", "_".join(map(str, parts)))
