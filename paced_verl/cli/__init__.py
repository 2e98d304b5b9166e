"""The command ``paced-verl``."""

from __future__ import annotations

import typer

from paced_verl.cli import align, capability, diagnose, evaluate, pass_rates, runs

app = typer.Typer(no_args_is_help=True, add_completion=False, help="PACED distillation for verl.")
for command in (runs.doctor, runs.plan, runs.targets, runs.report):
    app.command()(command)
app.add_typer(pass_rates.app, name="pass-rates")
app.add_typer(evaluate.app, name="eval")
app.add_typer(diagnose.app, name="diagnose")
app.add_typer(align.app, name="align")
app.add_typer(capability.app, name="capability")
