"""When does pacing pay? Runs the programme, and writes what came out to docs/experiments.md.

python -m scripts.experiments.evidence run            # all of it, two runs at a time: hours; --plan counts what is left
python -m scripts.experiments.evidence run E1 E2      # parts of it; what was killed goes on where it was
python -m scripts.experiments.evidence run --smoke    # two minutes, plain torch
python -m scripts.experiments.evidence snr            # agreement of gradients before any training
VERL_PLATFORM=cpu python -m scripts.experiments.evidence verl   # the two regimes that matter most, with verl's trainer
VERL_PLATFORM=cpu python -m scripts.experiments.evidence verl --smoke   # one tiny run of it, whose row is not kept
python -m scripts.experiments.evidence page           # tables, page and pictures, out of what has been run
python -m scripts.experiments.evidence page --check   # compares page and pictures with the committed tables
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.progress import Progress, track

from scripts.experiments.evidence import runner
from scripts.experiments.evidence.cells import EXPERIMENTS, SEEDS, programme, smoke
from scripts.experiments.page import PAGES, ROOT, put

MODULE = "scripts.experiments.evidence"
PAGE, README, TABLES = ROOT / "docs" / "experiments.md", ROOT / "README.md", PAGES / "evidence"
SNR, VERL = TABLES / "snr.parquet", TABLES / "verl.parquet"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console(highlight=False)
FOLDER = (
    "Models and rows; what has a row there, or in the committed tables, is done. One a state of the code by default."
)


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
    if not small:
        runner.restore(committed(), folder)
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
def snr(folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None) -> None:
    """Measure how much gradients agree, by pass rate."""
    from scripts.experiments.evidence.snr import measure

    rows = [row for seed in track(SEEDS[:10], console=console) for row in measure(seed, folder or default_folder())]
    TABLES.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(SNR)


@app.command()
def verl(
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time; about 6 GB of memory each.")] = 2,
    small: Annotated[bool, typer.Option("--smoke", help="One run of four steps instead; nothing is kept.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Models and runs; goes on in it.")] = None,
) -> None:
    """Run what is not in the table of the two regimes that matter most with verl's trainer: five minutes a run."""
    from scripts.experiments.evidence import in_verl

    if small:
        with tempfile.TemporaryDirectory() as temporary:
            console.print(in_verl.smoke(folder or Path(temporary)))
        return
    rows = pl.read_parquet(VERL).to_dicts() if VERL.exists() else []
    TABLES.mkdir(parents=True, exist_ok=True)
    for row in in_verl.run(in_verl.todo(rows), folder or ROOT / "outputs" / "evidence" / "verl", processes):
        rows.append(row)
        pl.DataFrame(sorted(rows, key=lambda row: (row["regime"], row["seed"], row["arm"]))).write_parquet(VERL)


@app.command()
def page(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where something differs.")] = False,
    folder: Annotated[Path | None, typer.Option(help=FOLDER)] = None,
) -> None:
    """Write tables, page and pictures; or compare them."""
    from matplotlib.testing.compare import compare_images

    from scripts.experiments.evidence.answer import answer, in_short
    from scripts.experiments.evidence.contrasts import grouped
    from scripts.experiments.evidence.page import blocks
    from scripts.experiments.evidence.pictures import budget, the_map

    if not check:
        runner.keep(folder or default_folder(), TABLES, programme())
    rows = committed()
    missing, strange = runner.compared(rows, programme())
    wrong = [f"{missing} runs have no row, {strange} rows are of no run"] if missing or strange else []
    runs = grouped(rows)
    of_gradients, of_verl = (pl.read_parquet(file).to_dicts() if file.exists() else [] for file in (SNR, VERL))
    told = {
        PAGE: {"answer": answer(runs, of_verl)} | blocks(runs, of_gradients, of_verl),
        README: {"short": in_short(runs, of_verl)},
    }
    written = {file: put(file.read_text(), its, MODULE) for file, its in told.items()}
    wrong += [file.name for file, text in written.items() if text != file.read_text()]
    with tempfile.TemporaryDirectory() as drawn:
        for name, draw in (("map.png", the_map), ("budget.png", budget)):
            new, old = Path(drawn) / name, TABLES / name
            draw(runs, new)
            if not check:
                new.replace(old)
            elif compare_images(str(old), str(new), tol=2) is not None:
                wrong.append(name)
    if not check:
        for file, text in written.items():
            file.write_text(text)
    elif wrong:
        raise SystemExit(f"{', '.join(wrong)}: not what the tables say; python -m {MODULE} page writes them anew")


def committed() -> list[dict[str, Any]]:
    """The rows of the committed tables."""
    return [row for file in sorted(TABLES.glob("E*.parquet")) for row in pl.read_parquet(file).to_dicts()]


if __name__ == "__main__":
    app()
