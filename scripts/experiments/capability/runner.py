"""Runs cells and keeps a row of each: whatever is killed goes on where it was."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.experiments import rows
from scripts.experiments.capability import world as worlds
from scripts.experiments.capability.programme import Cell
from scripts.experiments.capability.world import World

HERE = Path(__file__).parent
SOURCES = (
    *(HERE / f"{part}.py" for part in ("problems", "world", "distil")),
    *(HERE.parent / "evidence" / f"{part}.py" for part in ("problems", "model")),
)


@functools.cache
def fingerprint() -> str:
    """Of the code that makes a run."""
    return rows.fingerprint(SOURCES)


def todo(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not place(cell.columns(), folder).exists()]


def restore(known: Sequence[rows.Row], folder: Path) -> None:
    """Put rows of this code that are in the committed table back into the folder, so that they are not run again."""
    rows.restore(known, fingerprint(), lambda row: place(row, folder))


def keep(folder: Path, table: Path) -> None:
    """Write the folder's rows to the table."""
    rows.write_table(rows.read(folder / "rows"), table)


def run(cells: Sequence[Cell], folder: Path, processes: int, hasty: bool = False) -> Iterator[int]:
    """Run what has no row in the folder; yields how many more have one, seed by seed."""
    groups = [list(group) for _, group in itertools.groupby(todo(cells, folder), key=lambda cell: cell.seed)]
    return rows.in_processes(in_world, [(group, folder, hasty) for group in groups], processes)


def in_world(cells: Sequence[Cell], folder: Path, hasty: bool = False) -> int:
    """Run cells of one seed, and keep a row each; returns how many. ``hasty``: the models have hardly learned."""
    torch.set_num_threads(1)  # at these sizes threads cost more than they give
    if hasty:  # in a process of its own
        worlds.STUDENT_STEPS, worlds.TEACHER_STEPS = 40, 60
    world = worlds.build(cells[0].seed, folder / "models")
    for cell in cells:
        one(cell, world, folder)
    return len(cells)


def one(cell: Cell, world: World, folder: Path) -> rows.Row:
    """Run a cell and keep its row, which is returned."""
    found = cell.kind(world, cell.plan(), cell.seed).run()
    row = cell.columns() | found | {"code": fingerprint(), "torch": torch.__version__}
    rows.write(row, place(row, folder))
    return row


def place(row: Mapping[str, Any], folder: Path) -> Path:
    """A file of its own for what a cell, or a row, says it is."""
    name = "_".join(str(row[column]) for column in ("phase", "arm", "seed", "decisions")).replace(" ", "-")
    return folder / "rows" / f"{name}.json"
