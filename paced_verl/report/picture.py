"""One picture of a run: did it learn, what happened to the pass rates, what did each stage train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from paced_verl.report.run import Run

STAGE_COLOURS = ("#dce9f7", "#f9e8d8", "#e3f2df", "#efe0f2")


def draw(runs: Mapping[str, Run], path: Path, title: str, teacher: float | None = None) -> None:
    """Draw runs side by side: the first in full, the others for comparison of their accuracy.

    Args:
        runs: By name; the first is the run of interest.
        path: Where the picture goes (PNG).
        title: Above it.
        teacher: The teacher's accuracy, a line beside the runs'.
    """
    (_, run), *_ = runs.items()
    figure, ((accuracy, histogram), (divergence, weight)) = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    for axes in (accuracy, divergence, weight):
        _shade_stages(axes, run)
    _accuracy(accuracy, runs, teacher)
    _pass_rates(histogram, run)
    _lines(divergence, run, {"paced/divergence/forward_kl": "forward KL", "paced/divergence/reverse_kl": "reverse KL"})
    divergence.set(title="Divergence per token on the stage's responses", xlabel="step", ylabel="nats", yscale="log")
    _lines(
        weight,
        run,
        {"paced/weight/zero_share": "share of prompts of weight 0", "paced/weight/ess": "effective share of prompts"},
    )
    weight.set(title="Where the budget goes", xlabel="step", ylabel="share of prompts", ylim=(0, 1))
    for axes in (accuracy, histogram, divergence, weight):
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _shade_stages(axes: Axes, run: Run) -> None:
    stages = run.series("paced/stage")
    for stage in sorted(set(stages.values())):
        steps = [step for step, value in stages.items() if value == stage]
        colour = STAGE_COLOURS[(int(stage) - 1) % len(STAGE_COLOURS)]
        axes.axvspan(min(steps) - 1, max(steps), color=colour, lw=0, zorder=0)


def _accuracy(axes: Axes, runs: Mapping[str, Run], teacher: float | None) -> None:
    for style, (name, run) in zip(("o-", "s--", "^:"), runs.items(), strict=False):
        points = run.accuracy()
        axes.plot(list(points), list(points.values()), style, label=name)
    if teacher is not None:
        axes.axhline(teacher, color="grey", ls="--", lw=1, label="teacher")
    axes.set(title="Held-out accuracy", xlabel="step", ylabel="accuracy", ylim=(0, 1))


def _pass_rates(axes: Axes, run: Run) -> None:
    for i, (done, table) in enumerate(run.pass_rates.items()):
        samples = max(1, int(table.samples.max()))  # K: pass rates are multiples of 1/K
        passes = np.round(table.rates()[table.samples > 0] * samples).astype(int)
        share = np.bincount(passes, minlength=samples + 1) / max(1, len(passes))
        width = 0.8 / samples / len(run.pass_rates)
        offset = (i - (len(run.pass_rates) - 1) / 2) * width
        axes.bar(np.arange(samples + 1) / samples + offset, share, width=width, label=f"after {done} steps")
    axes.set(title="Pass rates on the training prompts", xlabel="pass rate", ylabel="share of prompts")


def _lines(axes: Axes, run: Run, names: Mapping[str, str]) -> None:
    for name, label in names.items():
        points = run.series(name)
        axes.plot(list(points), list(points.values()), label=label, lw=1.5)
