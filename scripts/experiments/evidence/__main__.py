"""Runs the programme, two runs at a time; whatever is killed goes on where it was.

    python -m scripts.experiments.evidence run            # all of it: hours; --plan says how many runs are left
    python -m scripts.experiments.evidence run E1 E2      # parts of it
    python -m scripts.experiments.evidence run --smoke    # two minutes
    python -m scripts.experiments.evidence table          # writes what has been run to docs/experiments/evidence.parquet
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.progress import track

from scripts.experiments.evidence.cells import EXPERIMENTS, Cell, programme, smoke

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "outputs" / "evidence"
TABLE = ROOT / "docs" / "experiments" / "evidence.parquet"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)


def one(cell: Cell, folder: Path) -> str:
    """Run a cell and keep its row; returns the file."""
    import torch

    from scripts.experiments.evidence.distil import Distillation
    from scripts.experiments.evidence.world import build

    torch.set_num_threads(1)  # at these sizes threads cost more than they give
    world = build(cell.world(), cell.family, cell.seed, folder / "models")
    found = Distillation(world, cell.treatment(), cell.stages, cell.steps, cell.seed).run(cell.points())
    shares = {
        "teacher_right": 1 - world.wrong_teacher.float().mean().item(),
        **{name: (world.kind == i).float().mean().item() for i, name in enumerate(("hopeless", "frontier", "mastered"))},
    }
    file = folder / "rows" / f"{cell.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(cell.columns() | shares | found))
    unfinished.rename(file)
    return str(file)


def todo(cells: list[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not (folder / "rows" / f"{cell.key}.json").exists()]


@app.command()
def run(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(EXPERIMENTS)}; all by default.")] = None,
    small: Annotated[bool, typer.Option("--smoke", help="A few short runs instead.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say how many runs are left, and run none.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    folder: Annotated[Path, typer.Option(help="Models and rows; runs that have a row there are done.")] = FOLDER,
) -> None:
    """Run what has not been run."""
    for part in parts or []:
        if part not in EXPERIMENTS:
            raise typer.BadParameter(f"{part}: expected some of {', '.join(EXPERIMENTS)}")
    cells = smoke() if small else programme(parts or ())
    left = todo(cells, folder)
    console.print(f"{len(left)} of {len(cells)} runs are left")
    if plan or not left:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running = [pool.submit(one, cell, folder) for cell in left]
        for done in track(as_completed(running), total=len(running), console=console):
            done.result()


@app.command()
def table(folder: Annotated[Path, typer.Option(help="Where the rows are.")] = FOLDER) -> None:
    """Write all rows to one file, a row a run."""
    rows = [json.loads(file.read_text()) for file in sorted((folder / "rows").glob("*.json"))]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(TABLE)
    console.print(f"{TABLE.relative_to(ROOT)}: {len(rows)} runs")


if __name__ == "__main__":
    app()
