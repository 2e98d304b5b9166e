"""The command ``paced-verl diagnose``: what can be known before a run is paid for."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from paced_verl.cli.console import ConfigName, ConfigPath, Overrides, or_exit, say, settled, show

app = typer.Typer(no_args_is_help=True, help="What can be known before a run is paid for.")


class Dtype(str, Enum):
    """What models compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def weights(
    file: Annotated[Path, typer.Argument(help="A pass_rates.parquet, of a checkpoint or your own.")],
    alpha: Annotated[float, typer.Option(help="Exponent of p.", min=0)] = 1.0,
    beta: Annotated[float, typer.Option(help="Exponent of 1 − p.", min=0)] = 1.0,
) -> None:
    """Say what a table implies: weights, what a sampler saves, and what fewer samples a prompt would give."""
    from paced_verl.diagnostics.weights import diagnose
    from paced_verl.pacing.pass_rates import PassRateTable

    table = or_exit(lambda: PassRateTable.load(file))
    found = or_exit(lambda: diagnose(table.successes, table.samples, alpha, beta))
    a, b = found.prior
    effective = ", ".join(f"{share:.0%} with the {name} estimate" for name, share in found.effective_share.items())
    say(
        f"{found.prompts} prompts, {found.samples:.1f} samples each; {found.zero_share:.0%} weigh 0 "
        f"(paced.weight.estimate=posterior: none)\npass rates are distributed like Beta({a:.2f}, {b:.2f})\n"
        f"effective share of the prompts: {effective}"
    )
    moments = found.exponents
    say(f"exponents by moments: {moments if isinstance(moments, str) else 'α={:.2f}, β={:.2f}'.format(*moments)}")
    powers = Table("paced.sampler.power", "rows for the same variance", "saved")
    for power, rows in found.rows.items():
        powers.add_row(f"{power:g}", f"{rows:.2f}", f"{1 - rows / found.rows[0.0]:.0%}")
    show(powers)
    prices = Table("samples a prompt", "rollouts", "efficiency, empirical", "efficiency, posterior")
    for price in found.prices:
        prices.add_row(str(price.samples), str(price.rollouts), f"{price.empirical:.0%}", f"{price.posterior:.0%}")
    show(prices)


@app.command("snr")
def gradient_snr(
    out: Annotated[Path, typer.Option(help="Folder of the table, the picture and the gradients; goes on in it.")],
    overrides: Overrides = None,
    stage: Annotated[int, typer.Option(help="Whose divergence and responses: the stage of paced.schedule.")] = 1,
    module: Annotated[
        str | None, typer.Option(help="A module, a parameter, or a regular expression; the output layer by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Another student: Hugging Face folder, verl checkpoint, or name on the hub.")
    ] = None,
    per_bin: Annotated[int, typer.Option(min=2, help="Problems a bin of the pass rate at most.")] = 32,
    responses: Annotated[
        int | None, typer.Option(min=1, help="Responses a problem in a stage on the student's; the run's by default.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; one a GPU by default.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of both models.")] = Dtype.float32,
    dimensions: Annotated[int, typer.Option(min=64, help="Numbers that are kept of a gradient.")] = 16_384,
    seed: Annotated[int, typer.Option(help="Of problems, sampling, projection and intervals.", min=0)] = 0,
    config_name: ConfigName = "ppo_trainer",
    config_path: ConfigPath = None,
) -> None:
    """Measure how much the gradients of problems agree, by pass rate: what p(1−p) stands on. Loads both models."""

    def measured() -> None:
        from paced_verl.gradients.inputs import Options, resolve
        from paced_verl.gradients.measure import plan, run
        from paced_verl.gradients.result import NUMBERS, PICTURE, TABLE, evaluate, save
        from paced_verl.report.snr import draw, exponents, table

        config, paced = settled(overrides, config_name, config_path)
        options = Options(stage, module, model, per_bin, responses, dtype.value, dimensions, seed)
        measurement = plan(resolve(config, paced, options), out)
        say(f"{measurement}\nworkers: {workers or 'one a GPU, or one without GPUs'}")
        run(measurement, config, workers)
        result = evaluate(measurement)
        save(measurement, result, out)
        draw(result.snr, out / PICTURE, measurement.title)
        show(table(result.snr))
        say(f"as in the paper: {exponents(result.snr.plain)}\nwithout noise: {exponents(result.snr.corrected)}")
        say(", ".join(str(out / name) for name in (TABLE, NUMBERS, PICTURE)))

    or_exit(measured)
