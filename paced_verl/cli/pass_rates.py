"""The command ``paced-verl pass-rates``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from paced_verl.cli.console import or_exit, say, show

if TYPE_CHECKING:
    from paced_verl.pacing.pass_rates import PassRateTable

app = typer.Typer(no_args_is_help=True, help="Look at pass-rate tables.")


@app.command("show")
def summarise(
    file: Annotated[Path, typer.Argument(help="A pass_rates.parquet, of a checkpoint or your own.")],
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's table; by default teacher_pass_rates.parquet beside FILE.")
    ] = None,
) -> None:
    """Summarise a table: how hard the problems are for the student, and what the paper's weight makes of them; and
    where the teacher's own responses were judged, which of them it solves."""
    from paced_verl.pacing.kernel import Kernel
    from paced_verl.pacing.pass_rates import PassRateTable

    table = or_exit(lambda: PassRateTable.load(file))
    summary = table.summary()
    weights = Kernel()(table.successes, table.samples)
    seen = table.samples > 0
    say(
        f"{len(table)} prompts, {seen.mean():.0%} seen, {table.samples[seen].mean():.1f} samples each; "
        f"pass rate {summary['mean']:.3f} on average; {(weights[seen] == 0).mean():.0%} weigh 0 under p(1−p)"
    )
    histogram = Table("pass rate", "prompts", "share", "")
    for i, count in enumerate(summary["histogram"]):
        share = count / max(1, seen.sum())
        histogram.add_row(f"{i / 10:.1f}–{(i + 1) / 10:.1f}", str(count), f"{share:.0%}", "█" * round(60 * share))
    show(histogram)
    beside = file.with_name("teacher_pass_rates.parquet")
    if teacher is not None or beside.exists():
        _show_teacher(table, or_exit(lambda: PassRateTable.load(teacher or beside, len(table), table.fingerprint)))


def _show_teacher(student: PassRateTable, teacher: PassRateTable) -> None:
    """Prompts by how often the student and the teacher solve them."""
    from paced_verl.pacing.reliability import two_way

    bins = ("below .2", ".2 to .8", "above .8", "not known")
    both = Table("student ↓  teacher →", *bins)
    for name, counts in zip(bins, two_way(student, teacher).tolist(), strict=True):
        both.add_row(name, *map(str, counts))
    judged = int((teacher.samples > 0).sum())
    say(f"teacher: pass rate {teacher.summary()['mean']:.3f} over the {judged} prompts it was judged on")
    show(both)
