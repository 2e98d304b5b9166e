"""What is asked before and after a run: does it work here, what will it do, what has it done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paced_verl.cli.console import ConfigName, ConfigPath, Overrides, or_exit, say, settled
from paced_verl.errors import PacedError

if TYPE_CHECKING:
    from paced_verl.report.run import Run


def doctor() -> None:
    """Say whether the plugin works in this environment; exit non-zero where something would not."""
    from paced_verl.launch.doctor import examine

    findings = examine()
    for finding in findings:
        say(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}", style=None if finding.ok else "red")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def plan(overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None) -> None:
    """Print what a run will do, without Ray or a GPU."""
    from paced_verl.launch.hydra import compose, describe

    print(or_exit(lambda: describe(compose(overrides or [], config_name, config_path))))


def targets(
    overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None
) -> None:
    """Have the teacher write its responses ahead of a run, into paced.targets.file. Goes on where it stopped."""
    from paced_verl.targets.write import generate_targets

    def generate() -> dict[str, float]:
        config, paced = settled(overrides, config_name, config_path)
        return generate_targets(config, paced)

    counts = or_exit(generate)
    say(", ".join(f"{name} {count}" for name, count in counts.items()))


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="The run's trainer.default_local_dir (or a metrics file); others to compare.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: paced/report.html in the run.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers instead of making a page.")] = False,
) -> None:
    """Make a page of a run: did it work, where did the budget go, what was learned, is it healthy."""
    from paced_verl.report.run import default_page, read_all

    if as_json and show:
        raise typer.BadParameter("--open shows a page, and --json makes none")
    loaded = or_exit(lambda: read_all(runs))
    if as_json:
        from paced_verl.report.summary import in_json, summarise_all

        numbers = in_json(summarise_all(loaded))
        if out is None:
            print(numbers)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(numbers)
        return
    page = or_exit(lambda: _write_page(loaded, out or default_page(runs[0])))
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    if show:
        typer.launch(str(page))


def _write_page(runs: list[Run], out: Path) -> Path:
    """Write the page, if what draws it is installed."""
    try:
        from paced_verl.report.page import write_page
    except ModuleNotFoundError as error:
        raise PacedError(
            f"A page needs {error.name}, which is not installed: pip install 'paced-verl[report]'. "
            "--json prints the numbers without it."
        ) from None
    write_page(runs, out)
    return out
