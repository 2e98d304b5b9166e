"""The command ``paced-verl``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="PACED distillation for verl.")
pass_rates = typer.Typer(no_args_is_help=True, help="Look at pass-rate tables.")
app.add_typer(pass_rates, name="pass-rates")
console = Console()

Overrides = Annotated[
    list[str] | None, typer.Argument(help="The overrides of the run, as given to python -m verl.trainer.main_ppo.")
]
ConfigName = Annotated[str, typer.Option(help="Hydra's --config-name.")]
ConfigPath = Annotated[Path | None, typer.Option(help="Hydra's --config-path (a folder).")]


@app.command()
def doctor() -> None:
    """Say whether the plugin works in this environment; exit non-zero where something would not."""
    from paced_verl.doctor import examine

    findings = examine()
    for finding in findings:
        console.print(f"{'[green]ok[/]  ' if finding.ok else '[red]FAIL[/]'} {finding.what}", highlight=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def plan(overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None) -> None:
    """Print what a run will do, without Ray or a GPU."""
    from paced_verl.launch import compose
    from paced_verl.plan import Plan

    print(_or_exit(lambda: Plan.of(compose(overrides or [], config_name, config_path))))


@app.command()
def targets(
    overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None
) -> None:
    """Have the teacher write its responses ahead of a run, into paced.targets.file. Goes on where it stopped."""
    from paced_verl.generate import generate_targets
    from paced_verl.launch import compose

    counts = _or_exit(lambda: generate_targets(compose(overrides or [], config_name, config_path)))
    console.print(", ".join(f"{name} {count}" for name, count in counts.items()))


@pass_rates.command("show")
def show(file: Annotated[Path, typer.Argument(help="A pass_rates.parquet, of a checkpoint or your own.")]) -> None:
    """Summarise a table: how hard the problems are for the student, and what the paper's weight makes of them."""
    from paced_verl.kernel import Kernel
    from paced_verl.passrate import PassRateTable

    table = _or_exit(lambda: PassRateTable.load(file))
    summary = table.summary()
    weights = Kernel()(table.successes, table.samples)
    seen = table.samples > 0
    console.print(
        f"{len(table)} prompts, {seen.mean():.0%} seen, {table.samples[seen].mean():.1f} samples each; "
        f"pass rate {summary['mean']:.3f} on average; {(weights[seen] == 0).mean():.0%} weigh 0 under p(1−p)",
        highlight=False,
    )
    histogram = Table("pass rate", "prompts", "share", "")
    for i, count in enumerate(summary["histogram"]):
        share = count / max(1, seen.sum())
        histogram.add_row(f"{i / 10:.1f}–{(i + 1) / 10:.1f}", str(count), f"{share:.0%}", "█" * round(60 * share))
    console.print(histogram)


def _or_exit(run):
    """Run, and turn what a person did wrong into a message and exit code 1."""
    from hydra.errors import HydraException

    try:
        return run()
    except (ValueError, FileNotFoundError, HydraException) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
