"""The command ``paced-verl``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from typer.core import TyperGroup

from paced_verl.cli_capability import capability
from paced_verl.console import ConfigName, ConfigPath, Overrides
from paced_verl.console import or_exit as _or_exit
from paced_verl.console import say as _say
from paced_verl.console import show as _show
from paced_verl.errors import PacedError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from paced_verl.config import PacedConfig
    from paced_verl.pacing.pass_rates import PassRateTable
    from paced_verl.report.run import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, help="PACED distillation for verl.")
pass_rates = typer.Typer(no_args_is_help=True, help="Look at pass-rate tables.")
app.add_typer(pass_rates, name="pass-rates")
evaluation = typer.Typer(no_args_is_help=True, help="What a distilled model gained, and what it forgot.")
app.add_typer(evaluation, name="eval")
diagnosis = typer.Typer(no_args_is_help=True, help="What can be known before a run is paid for.")
app.add_typer(diagnosis, name="diagnose")


class _MeasuresByDefault(TyperGroup):
    """``align <overrides>`` is ``align measure <overrides>``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, "--help"}
        return super().parse_args(ctx, args if args and args[0] in known else ["measure", *args])


alignment = typer.Typer(
    cls=_MeasuresByDefault, help="Where a teacher's loss moves the student towards success, from rollouts alone."
)
app.add_typer(alignment, name="align")
app.add_typer(capability, name="capability")


class Dtype(str, Enum):
    """What models compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def doctor() -> None:
    """Say whether the plugin works in this environment; exit non-zero where something would not."""
    from paced_verl.launch.doctor import examine

    findings = examine()
    for finding in findings:
        _say(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}", style=None if finding.ok else "red")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def plan(overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None) -> None:
    """Print what a run will do, without Ray or a GPU."""
    from paced_verl.launch.hydra import compose, describe

    print(_or_exit(lambda: describe(compose(overrides or [], config_name, config_path))))


@app.command()
def targets(
    overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None
) -> None:
    """Have the teacher write its responses ahead of a run, into paced.targets.file. Goes on where it stopped."""
    from paced_verl.targets.write import generate_targets

    def generate() -> dict[str, float]:
        config, paced = _settled(overrides, config_name, config_path)
        return generate_targets(config, paced)

    counts = _or_exit(generate)
    _say(", ".join(f"{name} {count}" for name, count in counts.items()))


@pass_rates.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A pass_rates.parquet, of a checkpoint or your own.")],
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's table; by default teacher_pass_rates.parquet beside FILE.")
    ] = None,
) -> None:
    """Summarise a table: how hard the problems are for the student, and what the paper's weight makes of them; and
    where the teacher's own responses were judged, which of them it solves."""
    from paced_verl.pacing.kernel import Kernel
    from paced_verl.pacing.pass_rates import PassRateTable

    table = _or_exit(lambda: PassRateTable.load(file))
    summary = table.summary()
    weights = Kernel()(table.successes, table.samples)
    seen = table.samples > 0
    _say(
        f"{len(table)} prompts, {seen.mean():.0%} seen, {table.samples[seen].mean():.1f} samples each; "
        f"pass rate {summary['mean']:.3f} on average; {(weights[seen] == 0).mean():.0%} weigh 0 under p(1−p)"
    )
    histogram = Table("pass rate", "prompts", "share", "")
    for i, count in enumerate(summary["histogram"]):
        share = count / max(1, seen.sum())
        histogram.add_row(f"{i / 10:.1f}–{(i + 1) / 10:.1f}", str(count), f"{share:.0%}", "█" * round(60 * share))
    _show(histogram)
    beside = file.with_name("teacher_pass_rates.parquet")
    if teacher is not None or beside.exists():
        _show_teacher(table, _or_exit(lambda: PassRateTable.load(teacher or beside, len(table), table.fingerprint)))


def _show_teacher(student: PassRateTable, teacher: PassRateTable) -> None:
    """Prompts by how often the student and the teacher solve them."""
    from paced_verl.pacing.reliability import two_way

    bins = ("below .2", ".2 to .8", "above .8", "not known")
    both = Table("student ↓  teacher →", *bins)
    for name, counts in zip(bins, two_way(student, teacher).tolist(), strict=True):
        both.add_row(name, *map(str, counts))
    judged = int((teacher.samples > 0).sum())
    _say(f"teacher: pass rate {teacher.summary()['mean']:.3f} over the {judged} prompts it was judged on")
    _show(both)


@diagnosis.command()
def weights(
    file: Annotated[Path, typer.Argument(help="A pass_rates.parquet, of a checkpoint or your own.")],
    alpha: Annotated[float, typer.Option(help="Exponent of p.", min=0)] = 1.0,
    beta: Annotated[float, typer.Option(help="Exponent of 1 − p.", min=0)] = 1.0,
) -> None:
    """Say what a table implies: weights, what a sampler saves, and what fewer samples a prompt would give."""
    from paced_verl.diagnostics.weights import diagnose
    from paced_verl.pacing.pass_rates import PassRateTable

    table = _or_exit(lambda: PassRateTable.load(file))
    found = _or_exit(lambda: diagnose(table.successes, table.samples, alpha, beta))
    a, b = found.prior
    effective = ", ".join(f"{share:.0%} with the {name} estimate" for name, share in found.effective_share.items())
    _say(
        f"{found.prompts} prompts, {found.samples:.1f} samples each; {found.zero_share:.0%} weigh 0 "
        f"(paced.weight.estimate=posterior: none)\npass rates are distributed like Beta({a:.2f}, {b:.2f})\n"
        f"effective share of the prompts: {effective}"
    )
    moments = found.exponents
    _say(f"exponents by moments: {moments if isinstance(moments, str) else 'α={:.2f}, β={:.2f}'.format(*moments)}")
    powers = Table("paced.sampler.power", "rows for the same variance", "saved")
    for power, rows in found.rows.items():
        powers.add_row(f"{power:g}", f"{rows:.2f}", f"{1 - rows / found.rows[0.0]:.0%}")
    _show(powers)
    prices = Table("samples a prompt", "rollouts", "efficiency, empirical", "efficiency, posterior")
    for price in found.prices:
        prices.add_row(str(price.samples), str(price.rollouts), f"{price.empirical:.0%}", f"{price.posterior:.0%}")
    _show(prices)


@app.command()
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
    loaded = _or_exit(lambda: read_all(runs))
    if as_json:
        from paced_verl.report.summary import in_json, summarise_all

        numbers = in_json(summarise_all(loaded))
        if out is None:
            print(numbers)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(numbers)
        return
    page = _or_exit(lambda: _write_page(loaded, out or default_page(runs[0])))
    _say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    if show:
        typer.launch(str(page))


@diagnosis.command("snr")
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

        config, paced = _settled(overrides, config_name, config_path)
        options = Options(stage, module, model, per_bin, responses, dtype.value, dimensions, seed)
        measurement = plan(resolve(config, paced, options), out)
        _say(f"{measurement}\nworkers: {workers or 'one a GPU, or one without GPUs'}")
        run(measurement, config, workers)
        result = evaluate(measurement)
        save(measurement, result, out)
        draw(result.snr, out / PICTURE, measurement.title)
        _show(table(result.snr))
        _say(f"as in the paper: {exponents(result.snr.plain)}\nwithout noise: {exponents(result.snr.corrected)}")
        _say(", ".join(str(out / name) for name in (TABLE, NUMBERS, PICTURE)))

    _or_exit(measured)


@alignment.command("measure")
def align(
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

        config, paced = _settled(overrides, config_name, config_path)
        inputs = resolve(config, paced)
        _say(str(inputs))
        if only_plan:
            return
        import asyncio

        from paced_verl.teacher.servers import start

        fork_workers(config)
        measurement = inputs.measurement(start(config), out)
        nodes = asyncio.run(measurement.run(_say))
        write(measurement, nodes, inputs.judge.tokenizer.decode)
        page = out / "alignment.html"
        write_page(out, page)
        _say(str(page))

    _or_exit(measured)


@alignment.command("fit")
def fit_aligned(
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
        _say(
            f"{found.teacher}, {found.divergence}: {found.nodes} nodes of {found.questions} questions\n"
            f"on questions it has not seen: AUROC {ours}; " + "; ".join(f"{name} {bar}" for name, bar in bars.items())
        )
        if worse := [name for name, bar in bars.items() if ours.low <= bar.auroc]:
            _say(
                f"That is no better than {' and '.join(worse)}, as far as can be told: do not train by it.", style="red"
            )

    _or_exit(fitted)


@alignment.command("report")
def report_alignment(
    folder: Annotated[Path, typer.Argument(help="What `paced-verl align --out` has left.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: alignment.html in the folder.")] = None,
) -> None:
    """Write the page of a measurement again."""
    from paced_verl.report.alignment import write_page

    page = out or folder / "alignment.html"
    _or_exit(lambda: write_page(folder, page))
    _say(str(page))


@evaluation.command()
def accuracy(
    model: Annotated[
        str, typer.Option(help="Hugging Face folder, verl checkpoint (global_step_N), or name on the hub.")
    ],
    data: Annotated[list[Path], typer.Option(help="Problems, a parquet file in verl's format; may be repeated.")],
    out: Annotated[Path, typer.Option(help="JSON file to write; responses and logs go beside it.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses a problem.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    config_name: ConfigName = "ppo_trainer",
    config_path: ConfigPath = None,
) -> None:
    """Mean accuracy on held-out problems, through verl's own validation: no teacher, no training step."""
    from paced_verl.evaluate.accuracy import evaluate_accuracy

    report = _or_exit(
        lambda: evaluate_accuracy(
            overrides or [],
            model=model,
            data=data,
            out=out,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            config_name=config_name,
            config_path=config_path,
        )
    )
    table = Table(Column("data", overflow="fold"), "problems", "samples", "accuracy %", "±", "95 %")
    for file, found in report["results"].items():
        values = _percent(found["accuracy"], found["standard_error"], found["interval"])
        table.add_row(file, str(found["problems"]), str(samples), *values)
    _show(table)
    for file, found in report["results"].items():
        if found["missing_samples"]:
            _say(f"{file}: verl got no answer for {found['missing_samples']} samples; they count as wrong.")
        if found["problems"] < found["rows"]:
            left = found["rows"] - found["problems"]
            _say(f"{file}: {left} of {found['rows']} rows are not in it: too long a prompt, or no answer.")


@evaluation.command()
def retention(
    before: Annotated[str, typer.Option(help="Hugging Face folder, verl checkpoint, or name on the hub.")],
    after: Annotated[str, typer.Option(help="The same, after distillation.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    tasks: Annotated[str, typer.Option(help="Tasks or groups of lm-evaluation-harness, joined by commas.")] = "mmlu",
    num_fewshot: Annotated[int, typer.Option(min=0, help="Examples in the prompt.")] = 5,
    limit: Annotated[int, typer.Option(min=2, help="Questions a task, drawn at random over all of a group.")] = 2000,
    backend: Annotated[str, typer.Option(help="hf or vllm.")] = "hf",
    model_args: Annotated[str, typer.Option(help="More arguments of the backend: key=value,key=value.")] = "",
    batch_size: Annotated[str, typer.Option(help="A number, or auto.")] = "auto",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
) -> None:
    """What was forgotten: accuracy before and after on lm-evaluation-harness, question by question."""
    from paced_verl.evaluate.retention import evaluate_retention

    report = _or_exit(
        lambda: evaluate_retention(
            before=before,
            after=after,
            tasks=tasks.split(","),
            out=out,
            num_fewshot=num_fewshot,
            limit=limit,
            backend=backend,
            model_args=model_args,
            batch_size=batch_size,
            include_path=include_path,
        )
    )
    table = Table("task", "questions", "before %", "after %", "forgetting", "±", "95 %")
    for task, found in report["results"].items():
        accuracies = (f"{100 * found[when]:.1f}" for when in ("before", "after"))
        forgetting = _percent(found["forgetting"], found["standard_error"], found["interval"])
        table.add_row(task, str(found["questions"]), *accuracies, *forgetting)
    _show(table)
    dtypes = report["dtypes"]
    if dtypes["before"] != dtypes["after"]:
        _say(
            f"The models ran in different precision: {dtypes['before']} and {dtypes['after']}. "
            "--model-args dtype=bfloat16 makes them equal.",
            style="yellow",
        )


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


def _percent(mean: float, error: float, interval: tuple[float, float]) -> tuple[str, str, str]:
    """A share, its standard error and its interval, in percent."""
    low, high = interval
    return f"{100 * mean:.1f}", f"{100 * error:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"


def _settled(overrides: list[str] | None, config_name: str, config_path: Path | None) -> tuple[DictConfig, PacedConfig]:
    """The configuration of a run, settled and checked, and its block."""
    from paced_verl.checks import check
    from paced_verl.launch.hydra import compose

    config = compose(overrides or [], config_name, config_path)
    return config, check(config)[0]


if __name__ == "__main__":
    app()
