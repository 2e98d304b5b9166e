"""Differences between arms, paired by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Attributes:
    gaps: float64 (pairs,): one of each seed at which both could be read.
    left_out: Seeds at which one of the two could not.
    """

    gaps: npt.NDArray[np.float64]
    left_out: int = 0

    @property
    def mean(self) -> float:
        """NaN where there is no pair."""
        return float(self.gaps.mean()) if len(self.gaps) else math.nan

    @property
    def seeds(self) -> int:
        """All that were run."""
        return len(self.gaps) + self.left_out

    @cached_property
    def sd(self) -> float:
        """Of the gaps; NaN for one pair or none."""
        if len(self.gaps) < 2:
            return math.nan
        return 0.0 if self._alike else float(self.gaps.std(ddof=1))

    @property
    def _alike(self) -> bool:
        return bool(np.ptp(self.gaps) < 1e-12)

    @cached_property
    def t_interval(self) -> tuple[float, float]:
        """95 %, of the mean."""
        if len(self.gaps) < 2:
            return math.nan, math.nan
        if self._alike:
            return self.mean, self.mean
        found = stats.ttest_1samp(self.gaps, 0.0).confidence_interval(0.95)
        return float(found.low), float(found.high)

    @cached_property
    def bca_interval(self) -> tuple[float, float]:
        """95 %, of the mean, by the bootstrap."""
        if len(self.gaps) < 2 or self._alike:
            return self.t_interval
        found = stats.bootstrap(
            (self.gaps,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
        return float(found.low), float(found.high)

    @cached_property
    def p(self) -> float:
        """Of the paired t-test, two-sided; 1 for less than two pairs, and where all differences are 0."""
        if len(self.gaps) < 2 or self._alike:
            return 0.0 if len(self.gaps) > 1 and abs(self.mean) > 1e-12 else 1.0
        return float(stats.ttest_1samp(self.gaps, 0.0).pvalue)


def difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Of ``first − second`` (pairs,), the same seeds in the same order. Pairs with a NaN are left out, and counted.

    Raises:
        ValueError: There is no pair, or the shapes differ.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"expected pairs, got shapes {one.shape} and {other.shape}")
    if not len(one):
        raise ValueError("there is no pair")
    known = ~np.isnan(one - other)
    return Difference((one - other)[known], left_out=int((~known).sum()))


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's adjusted p-values, in the order given: below .05 for those that a family-wise error of 5 % allows."""
    return multipletests(np.asarray(p_values, np.float64), method="holm")[1]


def non_inferior(found: Difference, margin: float = 0.01) -> bool:
    """Whether the 95 % interval lies above −margin, of all seeds."""
    return not found.left_out and found.t_interval[0] > -margin
