"""The map for the README, and curves of the budget beside the dose and its response."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from scripts.experiments.evidence import curves
from scripts.experiments.evidence.cells import HOPELESS, LONG, RIGHT
from scripts.experiments.evidence.contrasts import Run, Runs, by_area, by_final, pick
from scripts.experiments.evidence.page import MAPPED, dose
from scripts.experiments.evidence.predictions import R3
from scripts.experiments.evidence.shown import Measure, to_uniform
from scripts.experiments.evidence.stats import Difference

ARMS_SHOWN = (
    "weights",
    "sampler",
    "posterior sampler",
    "sampler, when drawn",
    "hard filter",
    "placebo",
    "teacher correct",
    "teacher gate",
    "teacher gate, sampler",
)
WIDEST = 0.2
"""Difference at which colours end."""


def the_map(runs: Runs, file: Path) -> None:
    """Arms × regimes, difference to uniform: at equal steps, and what is left of it at both prices."""
    panels: dict[str, Measure] = {
        "equal steps: mean accuracy over log steps": lambda both: by_area(both, "step"),
        "equal price, teacher's tokens eightfold (1 : 8 : 3)": lambda both: by_final(both, "price 1:8:3"),
        "equal price, all tokens alike (1 : 1 : 3)": lambda both: by_final(both, "price 1:1:3"),
    }
    figure, places = plt.subplots(1, len(panels), figsize=(17, 4.2), sharey=True, layout="constrained")
    for axes, (title, measure) in zip(places, panels.items(), strict=True):
        _heat(axes, [[to_uniform(runs, "E1", r, a, measure) for r in MAPPED] for a in ARMS_SHOWN])
        axes.set_title(title, size=10)
        axes.set_xticks(range(len(MAPPED)), list(map(_in_lines, MAPPED)))
        axes.tick_params(axis="x", labelsize=6.5)
    places[0].set_yticks(range(len(ARMS_SHOWN)), ARMS_SHOWN)
    figure.suptitle(
        "Held-out accuracy minus uniform's; 20 seeds; framed where the 95 % interval leaves out 0; "
        "prices count estimates",
        size=10,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _in_lines(regime: str) -> str:
    return regime.replace(" ", "\n", 1).replace(", ", ",\n").replace(" teacher", "\nteacher")


def _heat(axes: Axes, found: list[list[Difference]]) -> None:
    means = np.array([[one.mean for one in row] for row in found])
    axes.imshow(means, cmap="RdBu", vmin=-WIDEST, vmax=WIDEST, aspect="auto")
    for i, row in enumerate(found):
        for j, one in enumerate(row):
            if one.left_out:
                axes.text(j, i, "not\naffordable", ha="center", va="center", size=6)
                continue
            white = abs(one.mean) > 0.6 * WIDEST
            axes.text(j, i, f"{one.mean:+.2f}", ha="center", va="center", size=8, color="white" if white else "black")
            if one.t_interval[0] > 0 or one.t_interval[1] < 0:
                axes.add_patch(plt.Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, lw=1))


def budget(runs: Runs, file: Path) -> None:
    """Accuracy by step where half of the prompts are hopeless; and the sampler's gain by the teacher's reliability."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for arm in LONG:
        _curve(left, pick(runs, "E3", R3, arm, changes="prompts=512"), arm)
    _curve(left, pick(runs, "E3", R3, "sampler", refresh="every"), "sampler, estimated every 12 steps")
    left.set_xscale("symlog", linthresh=20)
    left.set(
        xlabel="training steps of 32 prompts",
        ylabel="held-out accuracy",
        title="R3: half is out of reach, teacher right",
    )
    left.legend(fontsize=8)
    for hopeless in HOPELESS:
        found = [dose(runs, "sampler", hopeless, share) for share in RIGHT]
        half = [one.t_interval[1] - one.mean for one in found]
        right.errorbar(RIGHT, [one.mean for one in found], half, label=f"{hopeless:.0%} hopeless", capsize=3)
    right.axhline(0, color="black", lw=0.8)
    right.set(
        xlabel="share of the hopeless prompts at which the teacher is right",
        ylabel="sampler minus uniform",
        title="equal steps: mean accuracy over log steps",
    )
    right.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(axes: Axes, runs: dict[int, Run], name: str) -> None:
    steps = next(iter(runs.values()))["step"]
    at = np.array([[curves.value_at(*curves.curve(run, "step"), step) for step in steps] for run in runs.values()])
    axes.plot(steps, at.mean(0), label=name)
    half = 2 * at.std(0, ddof=1) / len(at) ** 0.5
    axes.fill_between(steps, at.mean(0) - half, at.mean(0) + half, alpha=0.2)
