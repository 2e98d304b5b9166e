"""Runs the programme, two runs at a time; whatever is killed goes on where it was.

python -m scripts.experiments.evidence run            # all of it: hours; --plan says how many runs are left
python -m scripts.experiments.evidence run E1 E2      # parts of it
python -m scripts.experiments.evidence run --smoke    # two minutes
python -m scripts.experiments.evidence table          # writes what has been run to docs/experiments/evidence.parquet
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.progress import Progress

from scripts.experiments.evidence import runner
from scripts.experiments.evidence.cells import EXPERIMENTS, programme, smoke
from scripts.experiments.page import PAGES, ROOT

TABLE = PAGES / "evidence.parquet"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)
FOLDER = "Models and rows; what has a row there is done. By default one in outputs/ for each state of the code."


def default_folder() -> Path:
    return ROOT / "outputs" / "evidence" / runner.fingerprint()


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
    left = runner.todo(cells, folder)
    console.print(f"{len(left)} of {len(cells)} runs are left")
    if plan or not left:
        return
    with Progress(console=console) as progress:
        task = progress.add_task("runs", total=len(left))
        for done in runner.run(left, folder, processes):
            progress.advance(task, done)


@app.command()
def table(folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None) -> None:
    """Write all rows to one file, a row a run."""
    rows = [json.loads(file.read_text()) for file in sorted(((folder or default_folder()) / "rows").glob("*.json"))]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(TABLE)
    console.print(f"{TABLE.relative_to(ROOT)}: {len(rows)} runs")


if __name__ == "__main__":
    app()
