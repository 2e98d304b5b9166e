"""The command ``paced-verl capability``: what can be known before a budget over capabilities is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from paced_verl.cli.console import ConfigName, ConfigPath, Overrides, or_exit, say, show
from paced_verl.errors import PacedError

if TYPE_CHECKING:
    from paced_verl.capability.interventions import Interventions
    from paced_verl.report.run import Run

app = typer.Typer(no_args_is_help=True, help="What a budget over capabilities should know before it is spent.")

Runs = Annotated[
    list[Path],
    typer.Argument(help="trainer.default_local_dir of short runs, each of one decision, that began at one checkpoint."),
]


@app.command()
def plan(overrides: Overrides = None, config_name: ConfigName = "ppo_trainer", config_path: ConfigPath = None) -> None:
    """Say how a run will share its tokens among capabilities, without Ray or a GPU."""
    from paced_verl.launch.hydra import compose
    from paced_verl.launch.plan import Plan

    def planned() -> None:
        run = Plan.of(compose(overrides or [], config_name, config_path))
        settings, found = run.paced.capability, run.capabilities
        if settings is None:
            raise PacedError(
                "paced.capability=null: this run shares its tokens among nothing. Set it, for example "
                "'paced.capability={column: data_source}'."
            )
        for line in run.sharing():
            say(line)
        if found is None:
            say("The training data are not on this machine, so which capabilities they have is not known here.")
            return
        table = Table("capability", "requirement", "training prompts", "of these probes")
        probes = 0 if settings.probe is None else settings.probe.prompts
        shares = found.required(settings.requirement).tolist()
        for name, share, size in zip(found.names, shares, found.sizes.tolist(), strict=True):
            table.add_row(escape(name), f"{share:.0%}", f"{size:,}", f"{probes:,}")
        show(table)

    or_exit(planned)


@app.command()
def headroom(
    runs: Runs,
    requirement: Annotated[
        str | None, typer.Option(help="What the run to come is for, '{maths: 0.7, code: 0.3}'; by default as the runs.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="That the run to come trains on; by default as many as one of RUNS.", min=1)
    ] = None,
    floor: Annotated[float, typer.Option(help="Every capability's smallest share.", min=0, max=0.5)] = 0.02,
    worth: Annotated[
        float, typer.Option(help="Gain, of the static mix's, from which it pays to decide.", min=0)
    ] = 0.05,
) -> None:
    """Say whether it pays to decide at all: what the best mix would gain over the requirement's own, with intervals."""
    from paced_verl.capability.headroom import fit_transfer
    from paced_verl.capability.headroom import headroom as of
    from paced_verl.capability.optimum import Aim
    from paced_verl.capability.reward import protected_capabilities

    def found() -> None:
        loaded, taken = _interventions(runs)
        r = taken.required(None if requirement is None else _mapping(requirement, "--requirement"))
        protect = {"top": 3, "beta": 0.5} | dict(loaded[0].setting("paced.capability.protect", {}))
        horizon = 1.0 if tokens is None else tokens / taken.tokens
        protected = protected_capabilities(r, int(protect["top"]))
        aim = Aim(r, r, horizon, beta=protect["beta"], protected=protected, floor=floor)
        transfer = fit_transfer(taken.mixes, taken.before, taken.before_se, taken.after, taken.after_se)
        result = of(transfer, taken.before, aim, worth)
        say(
            f"{len(runs)} interventions of {taken.tokens:,.0f} tokens. What all of them, spent on one capability, add "
            "to each score at 0, in points, with 95 % intervals:"
        )
        matrix = Table("score ↓  tokens →", *map(escape, taken.names))
        for name, means, intervals in zip(taken.names, transfer.mean, transfer.interval, strict=True):
            cells = (f"{m:+.3f} ({i[0]:+.3f} to {i[1]:+.3f})" for m, i in zip(means, intervals, strict=True))
            matrix.add_row(escape(name), *cells)
        show(matrix)
        mixes = Table(f"for {horizon * taken.tokens:,.0f} tokens", *map(escape, taken.names))
        for words, mix in (("static mix: the requirement", r), ("best fixed mix", result.best)):
            mixes.add_row(words, *(f"{share:.0%}" for share in mix))
        show(mixes)
        say(result.verdict)
        if transfer.hurts:
            pairs = ", ".join(f"{taken.names[j]} costs {taken.names[i]}" for i, j in transfer.hurts)
            say(
                f"Trained on alone, {pairs}. A student that is trained on one thing forgets others more than a mix "
                "makes it forget, and this model cannot tell: make one whole run with a mix before you believe what it "
                "foresees."
            )

    or_exit(found)


@app.command()
def requirement(
    runs: Runs,
    utility: Annotated[str, typer.Option(help="The metric that the run is for, as val-core/…/mean@4; its last value.")],
    base: Annotated[
        Path | None, typer.Option(help="A run whose last value is that before RUNS; by default their own at step 0.")
    ] = None,
) -> None:
    """Say what a task requires: how much a point of each capability's score moves a metric, with intervals."""
    from paced_verl.capability.interventions import requirement_line, utilities
    from paced_verl.capability.requirement import fit_requirement
    from paced_verl.report.run import Run

    def found() -> None:
        loaded, taken = _interventions(runs)
        begun = None if base is None else Run.read(base).metrics
        after, before = utilities(utility, {run.name: run.metrics for run in loaded}, begun)
        fit = fit_requirement(after, taken.after, before, taken.before)
        table = Table("capability", "requirement r", "95 %")
        for name, share, (low, high) in zip(taken.names, fit.r, fit.interval, strict=True):
            table.add_row(escape(name), f"{share:.3f}", f"{low:.3f} to {high:.3f}")
        moved = f"{after.min() - before:+.3f} to {after.max() - before:+.3f}"
        say(f"{utility}: {before:.3f} before, moved by {moved} in {len(runs)} interventions")
        show(table)
        say(f"under paced.capability:\n  {requirement_line(taken.names, fit.r)}")

    or_exit(found)


@app.command()
def card(
    file: Annotated[
        Path, typer.Argument(help="YAML or JSON: a list of known cards, each with text and requirement {name: share}.")
    ],
    text: Annotated[str, typer.Option(help="Of the card whose requirement is wanted.")],
    encoder: Annotated[str, typer.Option(help="Sentence encoder: a Hugging Face folder, or a name on the hub.")],
    names: Annotated[str, typer.Option(help="Of the capabilities: a,b,c.")],
) -> None:
    """Guess what a task requires from its card's text, and say how near such guesses come on cards that are known."""
    from paced_verl.capability.card import Encoder, read_cards, requirement_of
    from paced_verl.capability.interventions import requirement_line

    def found() -> None:
        capabilities = [name.strip() for name in names.split(",") if name.strip()]
        texts, known = read_cards(_yaml(file.read_text(), str(file)), capabilities)
        result = requirement_of(text, texts, known, Encoder(encoder))
        say(f"under paced.capability:\n  {requirement_line(capabilities, result.r)}\n{result.verdict}")

    or_exit(found)


def _interventions(paths: list[Path]) -> tuple[list[Run], Interventions]:
    from paced_verl.capability.interventions import Interventions
    from paced_verl.report.run import read_all

    loaded = read_all(paths)
    return loaded, Interventions.of({run.name: run.decisions for run in loaded})


def _mapping(text: str, what: str) -> dict[str, Any]:
    found = _yaml(text, what)
    if not isinstance(found, dict):
        raise PacedError(f"{what}: expected {{name: share, …}}, got {text}")
    return {str(name): share for name, share in found.items()}


def _yaml(text: str, what: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PacedError(f"{what} is no YAML: {error}") from None
