"""How much the gradients of problems agree, by pass rate, as a picture and as a table to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from paced_verl.diagnostics.snr import BINS, MIDPOINTS, THEORY, Curve, Snr, fitted
from paced_verl.errors import PacedError

try:
    import matplotlib
except ImportError as error:
    raise PacedError(f"The picture needs matplotlib ({error}): pip install 'paced-verl[report]'") from error

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

WIDTH = 0.8 / BINS
HIGHEST = 1.7
"""Of the axis: an interval that goes further says no more than one that ends there."""


def draw(found: Snr, path: Path, title: str) -> None:
    """Draw both estimators beside theory, each scaled by its largest bin.

    Args:
        found: The measurement.
        path: Where the picture goes (PNG).
        title: Above it.
    """
    curves = {"as in the paper": found.plain, "without noise": found.corrected}
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    figure.suptitle(title, fontsize=10)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        _draw_curve(axes, found, curve)
        axes.set_title(f"{name}\n{exponents(curve)}", fontsize=9)
        axes.set(xlabel="pass rate p", xlim=(0, 1), ylim=(0, HIGHEST))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("SNR / that of the largest bin")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_curve(axes: Axes, found: Snr, curve: Curve) -> None:
    known = np.isfinite(curve.snr)
    heights, bounds = curve.scaled[known], np.minimum(curve.interval[:, known] / curve.scale, 2 * HIGHEST)
    errors = np.nan_to_num(np.maximum(np.stack([heights - bounds[0], bounds[1] - heights]), 0))
    axes.bar(
        MIDPOINTS[known],
        heights,
        WIDTH,
        yerr=errors,
        capsize=2,
        color="#9bbbe0",
        ecolor="#55606c",
        error_kw={"lw": 1},
        label="measured, 95 %",
    )
    for p, count in zip(MIDPOINTS, found.problems, strict=True):
        axes.annotate(f"n={count}", (p, HIGHEST), ha="center", va="top", fontsize=6, color="#555555")
    p = np.linspace(0, 1, 201)
    axes.plot(p, np.sqrt(p * (1 - p)) / THEORY.max(), color="#c0504d", label="theory √(p(1−p))")
    if not np.isnan(curve.exponents).any():
        _draw_fit(axes, curve)


def _draw_fit(axes: Axes, curve: Curve) -> None:
    """The fitted power law, at the height that suits the bars that it was fitted to."""
    a, b = curve.exponents / 2
    used = fitted(curve.scaled)
    shape = MIDPOINTS**a * (1 - MIDPOINTS) ** b
    height = np.exp(np.mean(np.log(curve.scaled[used] / shape[used])))
    p = np.linspace(0.01, 0.99, 199)
    axes.plot(p, height * p**a * (1 - p) ** b, color="#404040", ls="--", lw=1, label="fit")


def exponents(curve: Curve) -> str:
    """The fitted power law in a line."""
    if np.isnan(curve.exponents).any():
        return f"no exponents: SNR² is above 0 in {curve.bins} bins, three are needed"
    a, b = (
        f"{value:.2f} [{low:.2f}, {high:.2f}]"
        for value, low, high in zip(curve.exponents, *curve.exponent_intervals, strict=True)
    )
    return f"SNR² ∝ p^a (1−p)^b, a = {a}, b = {b}"


def table(found: Snr) -> Table:
    """A row a bin, for a terminal."""
    result = Table("pass rate", "problems", "SNR", "95 %", "SNR without noise", "95 %", "scaled", "theory, scaled")
    for place, count in enumerate(found.problems):
        row = [f"{place / BINS:.1f}–{(place + 1) / BINS:.1f}", str(count)]
        if count > 1:
            for curve in (found.plain, found.corrected):
                low, high = curve.interval[:, place]
                row += [f"{curve.snr[place]:.3f}", f"{low:.3f} to {high:.3f}"]
            row += [f"{found.corrected.scaled[place]:.2f}", f"{THEORY[place] / THEORY.max():.2f}"]
        result.add_row(*row)
    return result
