"""Differences between arms, paired by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Attributes:
    pairs: Seeds that both have.
    mean, sd: Of the differences; ``sd`` is NaN for one pair.
    t_interval, bca_interval: 95 %, of the mean.
    p: Of the paired t-test, two-sided; 1 where all differences are 0.
    """

    pairs: int
    mean: float
    sd: float
    t_interval: tuple[float, float]
    bca_interval: tuple[float, float]
    p: float


def difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Of ``first − second`` (pairs,), the same seeds in the same order. Pairs with a NaN are left out.

    Raises:
        ValueError: No pair is left, or the shapes differ.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"expected pairs, got shapes {one.shape} and {other.shape}")
    gaps = (one - other)[~np.isnan(one - other)]
    if not len(gaps):
        raise ValueError("there is no pair")
    mean = float(gaps.mean())
    if len(gaps) == 1 or np.ptp(gaps) < 1e-12:
        sd = 0.0 if len(gaps) > 1 else float("nan")
        whole = (mean, mean) if len(gaps) > 1 else (float("nan"), float("nan"))
        return Difference(len(gaps), mean, sd, whole, whole, 1.0 if abs(mean) < 1e-12 or len(gaps) == 1 else 0.0)
    test = stats.ttest_1samp(gaps, 0.0)
    interval = test.confidence_interval(0.95)
    bca = stats.bootstrap(
        (gaps,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Difference(
        len(gaps),
        mean,
        float(gaps.std(ddof=1)),
        (float(interval.low), float(interval.high)),
        (float(bca.low), float(bca.high)),
        float(test.pvalue),
    )


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's adjusted p-values, in the order given: below .05 for those that a family-wise error of 5 % allows."""
    return multipletests(np.asarray(p_values, np.float64), method="holm")[1]


def non_inferior(found: Difference, margin: float = 0.01) -> bool:
    """Whether the 95 % interval lies above −margin."""
    return found.t_interval[0] > -margin
