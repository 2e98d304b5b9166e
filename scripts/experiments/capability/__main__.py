"""Do policies that share tokens among capabilities gain anything? Runs the programme and writes what came out.

python -m scripts.experiments.capability run interventions calibration   # what is looked at first
python -m scripts.experiments.capability run               # all of it, an hour; --plan counts what is left
python -m scripts.experiments.capability run --smoke       # a minute
python -m scripts.experiments.capability keep              # the committed table, out of what has been run
python -m scripts.experiments.capability page              # the page, out of that table
python -m scripts.experiments.capability page --check      # compares the page with the committed table
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console

from scripts.experiments.capability import runner
from scripts.experiments.capability.programme import PHASES, programme, smoke
from scripts.experiments.page import PAGES, ROOT, put

MODULE = "scripts.experiments.capability"
TABLE = PAGES / "capability.parquet"
PAGE = TABLE.with_suffix(".md")
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)
FOLDER = (
    "Models and rows; what has a row there, or in the committed table, is done. One a state of the code by default."
)


def default_folder() -> Path:
    return ROOT / "outputs" / "capability" / runner.fingerprint()


def committed() -> list[dict[str, Any]]:
    """The rows of the committed table."""
    return pl.read_parquet(TABLE).to_dicts() if TABLE.exists() else []


@app.command()
def run(
    phases: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PHASES)}; all by default.")] = None,
    small: Annotated[bool, typer.Option("--smoke", help="A few short runs instead.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say how many runs are left, and run none.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None,
) -> None:
    """Run what has not been run."""
    for phase in phases or []:
        if phase not in PHASES:
            raise typer.BadParameter(f"{phase}: expected some of {', '.join(PHASES)}")
    folder = folder or (default_folder() / "smoke" if small else default_folder())
    if not small:
        runner.restore(committed(), folder)
    cells = smoke() if small else programme(phases or ())
    left = runner.todo(cells, folder)
    console.print(f"{len(left)} of {len(cells)} runs are left")
    if plan:
        return
    for done in runner.run(left, folder, processes, hasty=small):
        console.print(f"{done} more")


@app.command()
def keep(folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None) -> None:
    """Write the committed table, out of what has been run."""
    folder = folder or default_folder()
    runner.restore(committed(), folder)
    runner.keep(folder, TABLE)


@app.command()
def page(check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on a difference.")] = False) -> None:
    """Write the page, or compare it with the committed table."""
    from scripts.experiments.capability.page import blocks

    written = put(PAGE.read_text(), blocks(committed()), MODULE)
    if not check:
        PAGE.write_text(written)
    elif written != PAGE.read_text():
        raise SystemExit(f"{PAGE.name} does not show what {TABLE.name} says: python -m {MODULE} page writes it anew")


if __name__ == "__main__":
    app()
