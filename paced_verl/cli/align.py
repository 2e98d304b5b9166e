"""The command ``paced-verl align``: where a teacher's loss moves the student towards success."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from paced_verl.cli.console import ConfigName, ConfigPath, Overrides, or_exit, say, settled


class _MeasuresByDefault(TyperGroup):
    """``align <overrides>`` is ``align measure <overrides>``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, "--help"}
        return super().parse_args(ctx, args if args and args[0] in known else ["measure", *args])


app = typer.Typer(
    cls=_MeasuresByDefault, help="Where a teacher's loss moves the student towards success, from rollouts alone."
)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Folder of rollouts and tables; goes on in it.")],
    overrides: Overrides = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what it costs, and start nothing.")] = False,
    config_name: ConfigName = "ppo_trainer",
    config_path: ConfigPath = None,
) -> None:
    """Measure where a teacher's loss moves the student towards success: settings under paced.alignment."""

    def measured() -> None:
        from paced_verl.forcing.inputs import resolve
        from paced_verl.forcing.tables import write
        from paced_verl.launch.hydra import fork_workers
        from paced_verl.report.alignment import write_page

        config, paced = settled(overrides, config_name, config_path)
        inputs = resolve(config, paced)
        say(str(inputs))
        if only_plan:
            return
        import asyncio

        from paced_verl.teacher.servers import start

        fork_workers(config)
        measurement = inputs.measurement(start(config), out)
        nodes = asyncio.run(measurement.run(say))
        write(measurement, nodes, inputs.judge.tokenizer.decode)
        page = out / "alignment.html"
        write_page(out, page)
        say(str(page))

    or_exit(measured)


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(help="What `paced-verl align --out` has left.")],
    out: Annotated[Path, typer.Option(help="File to write, for paced.tokens.file.")],
    teacher: Annotated[str | None, typer.Option(help="Whose loss; the first one by default.")] = None,
    divergence: Annotated[str | None, typer.Option(help="Of which; the first one by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds and intervals.", min=0)] = 0,
) -> None:
    """Fit which tokens' loss points towards success, for paced.tokens.select=aligned; judged on other questions."""

    def fitted() -> None:
        from paced_verl.alignment.predict import fit_to

        found = fit_to(folder, teacher, divergence, seed)
        found.save(out)
        ours, bars = found.held_out, {"the position alone": found.position, "TIP": found.tip}
        say(
            f"{found.teacher}, {found.divergence}: {found.nodes} nodes of {found.questions} questions\n"
            f"on questions it has not seen: AUROC {ours}; " + "; ".join(f"{name} {bar}" for name, bar in bars.items())
        )
        if worse := [name for name, bar in bars.items() if ours.low <= bar.auroc]:
            say(
                f"That is no better than {' and '.join(worse)}, as far as can be told: do not train by it.", style="red"
            )

    or_exit(fitted)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What `paced-verl align --out` has left.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: alignment.html in the folder.")] = None,
) -> None:
    """Write the page of a measurement again."""
    from paced_verl.report.alignment import write_page

    page = out or folder / "alignment.html"
    or_exit(lambda: write_page(folder, page))
    say(str(page))
