"""SNR by bin of the gradients that are there, as a table and as numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.atomic import replacing
from paced_verl.diagnostics.snr import BINS, THEORY, FloatArray, Snr, measure
from paced_verl.evaluate import write_json
from paced_verl.gradients.measure import Measurement
from paced_verl.gradients.worker import Gradient

TABLE, NUMBERS, PICTURE = "snr.parquet", "snr.json", "snr.png"


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        snr: By bin.
        pass_rate: (10,) mean of the bin's problems, NaN without any.
        norm: (10,) root mean square of their gradients' lengths.
        divergence: (10,) mean of their divergence a token, in nats.
    """

    snr: Snr
    pass_rate: FloatArray
    norm: FloatArray
    divergence: FloatArray

    def table(self) -> pa.Table:
        """A row a bin."""
        found, edges = self.snr, np.arange(BINS) / BINS
        columns: dict[str, Any] = {
            "low": edges,
            "high": edges + 1 / BINS,
            "problems": found.problems,
            "pass_rate": self.pass_rate,
            "gradient_norm": self.norm,
            "divergence": self.divergence,
            "theory": THEORY,
        }
        for name, curve in (("snr", found.plain), ("snr_corrected", found.corrected)):
            low, high = curve.interval
            columns |= {name: curve.snr, f"{name}_low": low, f"{name}_high": high, f"{name}_scaled": curve.scaled}
        return pa.table(columns | {"projection_error": found.projection_error})

    def exponents(self) -> dict[str, Any]:
        """By estimator: a and b of SNR² ∝ p^a (1−p)^b, their intervals, and the bins that they rest on."""
        curves = {"plain": self.snr.plain, "corrected": self.snr.corrected}
        return {
            name: {
                "a": curve.exponents[0],
                "b": curve.exponents[1],
                "a_interval": curve.exponent_intervals[:, 0].tolist(),
                "b_interval": curve.exponent_intervals[:, 1].tolist(),
                "bins": curve.bins,
            }
            for name, curve in curves.items()
        }


def evaluate(measurement: Measurement) -> Result:
    """SNR of the gradients that are there: all of them."""
    inputs = measurement.inputs
    gradients = [measurement.parts.read(problem.prompt) for problem in inputs.problems]
    members = [np.flatnonzero(inputs.bins == place) for place in range(BINS)]
    squares = np.array([gradient.squared_norm for gradient in gradients])
    divergences = np.array([gradient.divergence for gradient in gradients])
    projected = measurement.dimensions < sum(measurement.sizes.values())
    return Result(
        snr=measure(
            [gram([gradients[i] for i in chosen]) for chosen in members],
            measurement.dimensions if projected else None,
            inputs.recipe.seed,
        ),
        pass_rate=_means(inputs.rates, members),
        norm=np.sqrt(_means(squares, members)),
        divergence=_means(divergences, members),
    )


def gram(gradients: list[Gradient]) -> FloatArray:
    """(n, n) inner products: of sketches, and on the diagonal the exact squares."""
    if not gradients:
        return np.zeros((0, 0))
    sketches = np.stack([gradient.sketch for gradient in gradients]).astype(np.float64)
    products = sketches @ sketches.T
    np.fill_diagonal(products, [gradient.squared_norm for gradient in gradients])
    return products


def save(measurement: Measurement, result: Result, out: Path) -> None:
    """Write the table, and the exponents with the settings."""
    with replacing(out / TABLE) as unfinished:
        pq.write_table(result.table(), unfinished)
    numbers = {"exponents": result.exponents(), "settings": dataclasses.asdict(measurement.inputs.recipe)}
    write_json(out / NUMBERS, numbers)


def _means(values: FloatArray, members: list[Any]) -> FloatArray:
    return np.array([values[chosen].mean() if len(chosen) else np.nan for chosen in members])
