"""Means over independent units, with what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

NORMAL_95 = 1.959964
"""Standard errors on either side of a normal estimate that make its 95 % interval."""


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


def bounded(mean: float, units: int, within: float = 0.0) -> Estimate:
    """The mean of values in [0, 1], one a unit, of which only the mean is known, with its largest possible error.

    Values in [0, 1] of mean m vary by m(1 − m) at most. Where a unit's value is itself the mean of samples in {0, 1},
    the samples' variance within a unit is not the units': m(1 − m) is the sum of both.

    Args:
        mean: m.
        units: n.
        within: Mean of the samples' standard deviation (ddof 0) in a unit. Its square is at most the mean variance, so
            the error that comes out is still an upper bound.

    Returns:
        Standard error √((m(1 − m) − within²) / (n − 1)). A mean of 0 or 1 has one whose interval reaches as far as that
        of Clopper & Pearson, 1 − .025^(1/n): that none of n was right does not mean that none ever is. NaN for one
        unit, outside of [0, 1], and where the values cannot vary as they are said to.
    """
    if mean in (0, 1) and units > 1:
        return Estimate(units, mean, float((1 - 0.025 ** (1 / units)) / stdtrit(units - 1, 0.975)))
    variance = mean * (1 - mean) - within**2
    error = float(np.sqrt(variance / (units - 1))) if variance > 0 and units > 1 else float("nan")
    return Estimate(units, mean, error)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """``first − second`` of means over different units; over the same ones the error is mostly smaller."""
    error = float(np.hypot(first.standard_error, second.standard_error))
    return Estimate(min(first.units, second.units), first.mean - second.mean, error)
