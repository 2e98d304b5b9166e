"""What cells of the page's tables show, and the difference that most of them are of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scripts.experiments.evidence import curves
from scripts.experiments.evidence.contrasts import Run, Runs, pairs, pick
from scripts.experiments.evidence.stats import Difference

Measure = Callable[[list[tuple[Run, Run]]], Difference]


def shown(found: Difference, digits: int = 3) -> str:
    """Mean and half of the 95 % interval; bold where 0 is outside."""
    half = found.t_interval[1] - found.mean
    text = f"{found.mean:+.{digits}f} ± {half:.{digits}f}" if math.isfinite(half) else f"{found.mean:+.{digits}f}"
    return f"**{text}**" if found.t_interval[0] > 0 or found.t_interval[1] < 0 else text


def priced(found: Difference) -> str:
    """The same at a price, which may not pay for an arm's first steps."""
    if not found.left_out:
        return shown(found)
    return "not affordable" + (f" in {found.left_out} of {found.seeds} seeds" if len(found.gaps) else "")


def of_pairs(found: Difference) -> str:
    """The same with how many seeds could be read; without a figure where these are less than half of them."""
    seeds = f"{len(found.gaps)} of {found.seeds} pairs"
    return seeds if len(found.gaps) < found.left_out else f"{shown(found)}, {seeds}"


def level(values: Sequence[float], digits: int = 3) -> str:
    """Mean over seeds and half of its 95 % interval; nothing where a seed has no value."""
    if np.isnan(values).any():
        return ""
    return shown(Difference(np.asarray(values, np.float64)), digits).strip("*").removeprefix("+")


def short(regime: str) -> str:
    """R0 to R7, with the teacher where there are two of one number."""
    number, words = regime.split(" ", 1)
    return f"{number} {words.split(', ')[1].split()[0]}" if number == "R7" else number


def to_uniform(runs: Runs, part: str, regime: str, arm: str, measure: Measure, **where: Any) -> Difference:
    """What an arm has over uniform in the same cell."""
    return measure(pairs(pick(runs, part, regime, arm, **where), pick(runs, part, regime, "uniform", **where)))


def after(run: Run, step: float) -> float:
    return curves.value_at(*curves.curve(run, "step"), step)
