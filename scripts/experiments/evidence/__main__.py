"""Runs the programme, two runs at a time; whatever is killed goes on where it was.

python -m scripts.experiments.evidence run            # all of it: hours; --plan says how many runs are left
python -m scripts.experiments.evidence run E1 E2      # parts of it
python -m scripts.experiments.evidence run --smoke    # two minutes
python -m scripts.experiments.evidence table          # writes what has been run to docs/experiments/evidence.parquet
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer
from rich.console import Console
from rich.progress import track

from scripts.experiments.evidence.cells import EXPERIMENTS, Cell, by_world, programme, smoke

if TYPE_CHECKING:
    from scripts.experiments.evidence.world import World

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "docs" / "experiments" / "evidence.parquet"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)
FOLDER = "Models and rows; what has a row there is done. By default one in outputs/ for each state of the code."


def default_folder() -> Path:
    return ROOT / "outputs" / "evidence" / fingerprint()


def fingerprint() -> str:
    """Of the code that makes a run: rows of other code are no rows of this programme."""
    parts = ("problems", "model", "regimes", "world", "arms", "distil")
    sources = b"".join((Path(__file__).with_name(f"{part}.py")).read_bytes() for part in parts)
    return hashlib.sha256(sources).hexdigest()[:8]


def in_world(cells: list[Cell], folder: Path) -> int:
    """Run cells that share a world, and keep a row each; returns how many."""
    import torch

    from scripts.experiments.evidence.world import build

    torch.set_num_threads(1)  # at these sizes threads cost more than they give
    world = build(cells[0].world(), cells[0].family, cells[0].seed, folder / "models")
    for cell in cells:
        one(cell, world, folder)
    return len(cells)


def one(cell: Cell, world: World, folder: Path) -> Path:
    """Run a cell and keep its row; returns the file."""
    import torch

    from scripts.experiments.evidence.distil import Distillation

    found = Distillation(world, cell.treatment(), cell.stages, cell.length, cell.seed, cell.rate).run(cell.points())
    shares = {
        "teacher_right": 1 - world.wrong_teacher.float().mean().item(),
        **{
            name: (world.kind == i).float().mean().item() for i, name in enumerate(("hopeless", "frontier", "mastered"))
        },
    }
    file = folder / "rows" / f"{cell.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(
        json.dumps(cell.columns() | shares | found | {"code": fingerprint(), "torch": torch.__version__})
    )
    unfinished.rename(file)
    return file


def todo(cells: list[Cell], folder: Path) -> list[Cell]:
    """Those that have no row yet."""
    return [cell for cell in cells if not (folder / "rows" / f"{cell.key}.json").exists()]


@app.command()
def run(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(EXPERIMENTS)}; all by default.")] = None,
    small: Annotated[bool, typer.Option("--smoke", help="A few short runs instead.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say how many runs are left, and run none.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None,
) -> None:
    """Run what has not been run."""
    folder = folder or default_folder()
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
        running = [pool.submit(in_world, cells, folder) for cells in by_world(left)]
        for done in track(as_completed(running), total=len(running), console=console):
            done.result()


@app.command()
def table(folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None) -> None:
    """Write all rows to one file, a row a run."""
    rows = [json.loads(file.read_text()) for file in sorted(((folder or default_folder()) / "rows").glob("*.json"))]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(TABLE)
    console.print(f"{TABLE.relative_to(ROOT)}: {len(rows)} runs")


if __name__ == "__main__":
    app()
