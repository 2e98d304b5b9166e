"""How much the gradients of problems agree, by pass rate: the measurement that the weight p^α (1−p)^β rests on.

PACED (arXiv 2603.11178) takes one distillation gradient g a problem, sorts problems into ten equal bins of the pass
rate p, and finds SNR = ‖mean g‖ / sqrt(mean ‖g − mean g‖²) in each. Its theory says sqrt(p(1−p)), up to a factor.

The mean of n gradients is never shorter than their noise leaves it: E‖mean g‖² = ‖E g‖² + σ²/n. So the paper's SNR² is
at least about 1/n whatever the gradients are, more so in small bins. Beside it stands the SNR without that part, from
inner products of *different* problems only:

    ‖E g‖² ≈ mean_{i≠j} ⟨g_i, g_j⟩,    σ² ≈ mean_{i≠j} ‖g_i − g_j‖² / 2,    SNR² = ‖E g‖² / σ²

Both are unbiased. With r the paper's SNR², this one is ((n−1) r − 1) / n. It may come out below 0, which means: no
agreement that could be told from noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paced_verl.diagnostics.projection import off_diagonal_error

FloatArray = npt.NDArray[np.float64]
BINS = 10
MIDPOINTS: FloatArray = (np.arange(BINS) + 0.5) / BINS
THEORY: FloatArray = np.sqrt(MIDPOINTS * (1 - MIDPOINTS))
REPLICATES = 1000
LEVEL = 0.95
ROUNDING = 1e-12
"""Of the gradients' squared lengths: less noise than this is none."""


def bins_of(successes: npt.ArrayLike, samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(n,) counts each → (n,) which of ten equal bins of the pass rate; p = 1 is in the last, −1 stands for unseen."""
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    # Dividing last: k/n · 10 would put 3 of 10 wherever rounding says.
    place = np.floor(np.divide(BINS * k, n, out=np.full(n.shape, -1.0), where=n > 0))
    return np.minimum(place, BINS - 1).astype(np.int64)


@dataclass(frozen=True)
class Moments:
    """Of n gradients: estimates of the squared length of their expectation and of their variance, unbiased.

    Attributes:
        signal: (…,) ‖E g‖².
        noise: (…,) σ² = E ‖g − E g‖².
    """

    signal: FloatArray
    noise: FloatArray

    @property
    def snr2(self) -> FloatArray:
        """(…,) signal / noise; infinite without noise, NaN where there are no two different problems, or no signal."""
        some = self.noise > ROUNDING * (self.signal + self.noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(some, self.signal, np.abs(self.signal)) / np.where(some, self.noise, 0.0))


def moments(gram: FloatArray, counts: FloatArray | None = None) -> Moments:
    """The moments of gradients with these inner products.

    Args:
        gram: (n, n).
        counts: (…, n) how often each problem counts; ``None``: once. A problem is never paired with itself, or a
            bootstrap's repetitions would look like agreement.
    """
    w = np.ones(len(gram)) if counts is None else counts
    total, lengths = w.sum(axis=-1, keepdims=True), np.diag(gram)
    pairs = (total**2).squeeze(-1) - np.sum(w**2, axis=-1)
    pairs = np.where(pairs > 0, pairs, np.nan)
    products = np.sum((w @ gram) * w, axis=-1) - w**2 @ lengths
    squares = np.sum(w * (total - w) * lengths, axis=-1)
    return Moments(np.asarray(products / pairs), np.asarray((squares - products) / pairs))


def plain(snr2: FloatArray, problems: npt.ArrayLike) -> FloatArray:
    """The paper's SNR² of n problems, from that without noise: (n x + 1) / (n − 1), at least 0."""
    n = np.asarray(problems, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum((n * snr2 + 1) / (n - 1), 0.0)


def fitted(snr2: FloatArray) -> npt.NDArray[np.bool_]:
    """(10,) which bins exponents can be fitted to."""
    return np.isfinite(snr2) & (np.nan_to_num(snr2) > 0)


def fit_exponents(snr2: FloatArray) -> FloatArray:
    """(2,) a and b of SNR² ∝ p^a (1−p)^b: least squares of log SNR² over the bins' midpoints.

    Read off the paper's picture, its bars give its own exponents in this way.

    Args:
        snr2: (10,) by bin. Those that are not above 0, or infinite, are left out; with fewer than three others a, b are
            NaN.
    """
    known = fitted(snr2)
    if known.sum() < 3:
        return np.full(2, np.nan)
    p = MIDPOINTS[known]
    design = np.stack([np.ones(len(p)), np.log(p), np.log1p(-p)], axis=1)
    return np.asarray(np.linalg.lstsq(design, np.log(snr2[known]), rcond=None)[0][1:])


@dataclass(frozen=True)
class Curve:
    """SNR by bin, by one of the two estimators, with 95 % intervals over problems.

    Attributes:
        snr: (10,), NaN in bins of fewer than two problems, infinite where all gradients are the same.
        interval: (2, 10), NaN in bins of fewer than three: two that are drawn anew are the same two, or one.
        exponents: (2,) a and b.
        exponent_intervals: (2, 2), the first row low.
        bins: How many bins the exponents rest on.
    """

    snr: FloatArray
    interval: FloatArray
    exponents: FloatArray
    exponent_intervals: FloatArray
    bins: int

    @property
    def scale(self) -> float:
        """The largest bin's SNR, which the paper divides by, of those that are finite; 1 where none is above 0."""
        return float(np.max(self.snr, where=np.isfinite(self.snr), initial=0.0)) or 1.0

    @property
    def scaled(self) -> FloatArray:
        """(10,) SNR over that of the largest bin."""
        return self.snr / self.scale


@dataclass(frozen=True)
class Snr:
    """The measurement.

    Attributes:
        problems: (10,) int.
        plain: The paper's estimator.
        corrected: Without what noise adds to a mean's length.
        projection_error: (10,) standard deviation that the projection leaves in ``plain.snr``, at most.
    """

    problems: npt.NDArray[np.int64]
    plain: Curve
    corrected: Curve
    projection_error: FloatArray


def measure(grams: Sequence[FloatArray], dimensions: int | None, seed: int = 0) -> Snr:
    """SNR by bin, and the exponents, of both estimators.

    Intervals are a bootstrap's over the problems of each bin, the same for both estimators: at a given n the one is a
    function of the other.

    Args:
        grams: Of each of the ten bins the (n, n) inner products of its gradients; n may be 0.
        dimensions: d of the projection that they come from (the diagonal is exact); ``None``: from none.
        seed: Of the bootstrap.
    """
    problems = np.array([len(gram) for gram in grams])
    snr2 = np.array([_snr2(gram) for gram in grams])
    rng = np.random.default_rng(seed)
    resampled = np.stack([_resampled(gram, rng) for gram in grams], axis=1)
    errors = [_projection_error(gram, dimensions) for gram in grams]
    return Snr(
        problems=problems,
        plain=_curve(plain(snr2, problems), plain(resampled, problems), problems),
        corrected=_curve(snr2, resampled, problems),
        projection_error=np.array(errors),
    )


def _snr2(gram: FloatArray) -> float:
    return float(moments(gram).snr2) if len(gram) > 1 else np.nan


def _resampled(gram: FloatArray, rng: np.random.Generator) -> FloatArray:
    """(replicates,) SNR² of problems drawn anew."""
    n = len(gram)
    if n < 2:
        return np.full(REPLICATES, np.nan)
    return moments(gram, rng.multinomial(n, np.full(n, 1 / n), REPLICATES).astype(np.float64)).snr2


def _projection_error(gram: FloatArray, dimensions: int | None) -> float:
    """How far the paper's SNR is off: its S = ‖mean g‖² is, in r = S / (T − S) with T = mean ‖g‖², known exactly.

    NaN where no noise is left: SNR is infinite then.
    """
    n = len(gram)
    if n < 2:
        return np.nan
    if dimensions is None:
        return 0.0
    total = float(np.trace(gram)) / n
    squared = max(float(gram.sum()) / n**2, np.finfo(float).tiny)
    if total - squared <= ROUNDING * total:
        return np.nan
    slope = total / (total - squared) ** 2 / (2 * np.sqrt(squared / (total - squared)))
    return slope * off_diagonal_error(gram, dimensions) / n**2


def _curve(snr2: FloatArray, resampled: FloatArray, problems: npt.NDArray[np.int64]) -> Curve:
    """A curve from (10,) SNR², its (replicates, 10) ones and the bins' sizes."""
    replicates = np.array([fit_exponents(row) for row in resampled])
    return Curve(
        snr=_root(snr2),
        interval=np.where(problems > 2, _quantiles(_root(resampled)), np.nan),
        exponents=fit_exponents(snr2),
        exponent_intervals=_quantiles(replicates),
        bins=int(fitted(snr2).sum()),
    )


def _quantiles(values: FloatArray) -> FloatArray:
    """(2, m) the middle 95 % of (replicates, m); NaN where no replicate says anything."""
    result = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    # No mean of two replicates: one may be infinite.
    result[:, known] = np.nanquantile(values[:, known], tails, axis=0, method="inverted_cdf")
    return result


def _root(snr2: FloatArray) -> FloatArray:
    """SNR of SNR²; 0 where that is below 0."""
    return np.sqrt(np.maximum(snr2, 0.0))
