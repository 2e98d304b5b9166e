"""The command ``paced-verl eval``: what a distilled model gained, and what it forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from paced_verl.cli.console import ConfigName, ConfigPath, Overrides, or_exit, say, show

app = typer.Typer(no_args_is_help=True, help="What a distilled model gained, and what it forgot.")


@app.command()
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

    report = or_exit(
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
    show(table)
    for file, found in report["results"].items():
        if found["missing_samples"]:
            say(f"{file}: verl got no answer for {found['missing_samples']} samples; they count as wrong.")
        if found["problems"] < found["rows"]:
            left = found["rows"] - found["problems"]
            say(f"{file}: {left} of {found['rows']} rows are not in it: too long a prompt, or no answer.")


@app.command()
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

    report = or_exit(
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
    show(table)
    dtypes = report["dtypes"]
    if dtypes["before"] != dtypes["after"]:
        say(
            f"The models ran in different precision: {dtypes['before']} and {dtypes['after']}. "
            "--model-args dtype=bfloat16 makes them equal.",
            style="yellow",
        )


def _percent(mean: float, error: float, interval: tuple[float, float]) -> tuple[str, str, str]:
    """A share, its standard error and its interval, in percent."""
    low, high = interval
    return f"{100 * mean:.1f}", f"{100 * error:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"
