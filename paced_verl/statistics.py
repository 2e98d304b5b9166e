"""Means over independent units, with what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over independent units: problems, or questions that two models answered.

    Attributes:
        units: Number of them, n.
        mean: In the units of the values.
        standard_error: Of the mean, std(values, ddof=1) / √n; NaN for a single unit.
        interval: 95 %, mean ± t(n − 1) standard errors.
    """

    units: int
    mean: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        half = float(stdtrit(self.units - 1, 0.975)) * self.standard_error if self.units > 1 else float("nan")
        return self.mean - half, self.mean + half


def estimate(values: npt.ArrayLike) -> Estimate:
    """The mean of ``values`` (n,), one a unit. Raises ValueError where there are none."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"expected one value a unit and at least one unit, got shape {array.shape}")
    error = array.std(ddof=1) / np.sqrt(array.size) if array.size > 1 else np.nan
    return Estimate(array.size, float(array.mean()), float(error))


def paired(before: npt.ArrayLike, after: npt.ArrayLike) -> Estimate:
    """The mean of ``before − after``, both (n,) and of the same units in the same order.

    Two models that answer the same questions mostly agree, and what they agree on cancels: this error is smaller than
    that of two independent means.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected the same units before and after, got shapes {first.shape} and {second.shape}")
    return estimate(first - second)
