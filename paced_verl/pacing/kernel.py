"""From a pass rate to a weight: w(p), its posterior expectation, and its parameters fitted to data.

PACED (arXiv 2603.11178) weighs a prompt by ``w(p) = p^α (1−p)^β``, where ``p = k/n`` is the share of n student
rollouts that are correct. The functions here work on whole arrays of counts k ("successes") and n ("samples"), which
may be fractions once old counts have decayed. Weights are raw: dividing by their mean over all training prompts is
the sampler's job.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from paced_verl.errors import PacedError, nearest

FloatArray = npt.NDArray[np.float64]
RateFunction = Callable[[FloatArray], npt.ArrayLike]

_BUILT_IN = ("beta", "hard_filter", "uniform")
_CUSTOM: dict[str, RateFunction] = {}


def register_kernel(name: str) -> Callable[[RateFunction], RateFunction]:
    """Make ``w(p)`` available as ``Kernel(name)``; pass rates in, weights (finite, ≥ 0, same shape) out.

    >>> @register_kernel("root")
    ... def root(p):
    ...     return (p * (1 - p)) ** 0.5
    """
    if name in _BUILT_IN:
        raise ValueError(f"register_kernel: {name!r} is a built-in kernel; choose another name")

    def register(function: RateFunction) -> RateFunction:
        _CUSTOM[name] = function
        return function

    return register


@dataclass(frozen=True)
class Kernel:
    """``Kernel(...)(successes, samples)`` gives raw weights.

    name: ``beta`` is p^α (1−p)^β; ``hard_filter`` is 1 for low ≤ p ≤ high, else 0 (the paper's baseline); ``uniform``
        is 1; or a name given to `register_kernel`.
    estimate: ``empirical`` takes p = k/n as it is, so beta weighs p = 0 and p = 1 with exactly 0, as the paper does;
        ``posterior`` takes the expectation of w(p) given k of n under a Beta prior, which never is 0 for beta.
    prior: (a, b) of that Beta prior, e.g. from `fit_prior`.
    """

    name: str = "beta"
    alpha: float = 1.0
    beta: float = 1.0
    low: float = 0.2
    high: float = 0.8
    estimate: str = "empirical"
    prior: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        known = [*_BUILT_IN, *_CUSTOM]
        if self.name not in known:
            raise PacedError(f"kernel: unknown name {self.name!r}. {nearest(str(self.name), known)}")
        if self.estimate not in ("empirical", "posterior"):
            raise PacedError(f"kernel: estimate must be 'empirical' or 'posterior', got {self.estimate!r}")
        if not 0 <= self.low <= self.high <= 1:
            raise PacedError(f"kernel: need 0 <= low <= high <= 1, got low={self.low}, high={self.high}")
        if not all(np.isfinite(value) and value > 0 for value in self.prior):
            raise PacedError(f"kernel: both numbers of the prior must be positive, got {self.prior}")
        # Under the posterior an exponent may be negative as long as the integral converges for k = 0 (k = n).
        floor_alpha, floor_beta = self.prior if self.estimate == "posterior" else (0.0, 0.0)
        for label, exponent, floor in (("alpha", self.alpha, floor_alpha), ("beta", self.beta, floor_beta)):
            defined = exponent + floor > 0 if self.estimate == "posterior" else exponent >= 0
            if self.name == "beta" and not (defined and np.isfinite(exponent)):
                bound = f"> {-floor} (minus the prior's count)" if self.estimate == "posterior" else ">= 0"
                raise PacedError(f"kernel: {label} must be {bound} with estimate={self.estimate}, got {exponent}")

    def __call__(self, successes: npt.ArrayLike, samples: npt.ArrayLike) -> FloatArray:
        """Raw weights, float64, of the shape of the counts.

        NaN where samples is 0 and the estimate is empirical (nobody has tried that prompt), except for ``uniform``.
        Raises ValueError if a registered kernel returns a wrong shape, a negative or a non-finite number.
        """
        k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(samples, np.float64))
        if self.name == "uniform":
            return np.ones(k.shape)
        if self.estimate == "posterior":
            return self._posterior_mean(self.prior[0] + k, self.prior[1] + n - k)
        weights = np.full(k.shape, np.nan)
        seen = n > 0
        weights[seen] = self.of_rate(k[seen] / n[seen])
        return weights

    @property
    def peak(self) -> float:
        """The largest w(p), over a grid of 1,001 pass rates; infinite for a negative exponent."""
        with np.errstate(divide="ignore"):
            return float(self.of_rate(np.linspace(0, 1, 1001)).max())

    def of_rate(self, rate: FloatArray) -> FloatArray:
        """w(p) for pass rates p in [0, 1], with 0^0 = 1."""
        if self.name == "beta":
            return rate**self.alpha * (1 - rate) ** self.beta
        if self.name == "hard_filter":
            # Counts are stored as float32: after decay 1 of 5 may come out as .19999999.
            return ((rate >= self.low - 1e-6) & (rate <= self.high + 1e-6)).astype(np.float64)
        if self.name == "uniform":
            return np.ones(rate.shape)
        weights = np.asarray(_CUSTOM[self.name](rate), np.float64)
        if weights.shape != rate.shape or not np.all((weights >= 0) & (weights < np.inf)):
            raise ValueError(f"kernel {self.name!r} must return one finite weight >= 0 for each pass rate")
        return weights

    def _posterior_mean(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """E[w(p)] for p ~ Beta(a, b), elementwise."""
        if self.name == "beta":
            return np.exp(special.betaln(a + self.alpha, b + self.beta) - special.betaln(a, b))
        if self.name == "hard_filter":
            return special.betainc(a, b, self.high) - special.betainc(a, b, self.low)
        pairs, inverse = np.unique(a.ravel() + 1j * b.ravel(), return_inverse=True)
        rates, mass = _beta_quadrature(pairs.real, pairs.imag)
        means = np.sum(mass * self.of_rate(rates), axis=1)
        return means[inverse].reshape(a.shape)


def weights_by_successes(kernel: Kernel, n: int, mean: float | None = None) -> FloatArray:
    """w̃ of a prompt of which 0, 1, … n of n responses are correct: w over ``mean``, or else over its own mean.

    Its own mean is that over k = 0 … n, which are equally likely where pass rates are uniform on [0, 1]. It is a
    constant of the kernel and of n, never a batch's: that would be 1 whatever the batch, so one of mastered prompts
    would train as strongly as one from the frontier, and a prompt's gradient would depend on its neighbours in it.

    Returns float64[n + 1]: all 0 where all w are 0 (n = 1 under an empirical ``beta``), and [1] for n = 0, since a
    prompt that nobody has tried weighs the mean.
    """
    if n == 0:
        return np.ones(1)
    weights = kernel(np.arange(n + 1), n)
    mean = weights.mean() if mean is None else mean
    return weights / mean if mean > 0 else weights


def _beta_quadrature(a: FloatArray, b: FloatArray, nodes: int = 16) -> tuple[FloatArray, FloatArray]:
    """Gauss–Jacobi nodes and probabilities for Beta(a, b): two arrays of shape ``a.shape + (nodes,)``.

    Exact for polynomials of degree < 2·nodes. The nodes are the eigenvalues of the tridiagonal matrix of the
    recurrence of Jacobi polynomials (Golub & Welsch 1969), so that no normaliser can overflow for large a, b.
    """
    matrix = np.zeros((*a.shape, nodes, nodes))  # lower triangle; on [−1, 1]
    # Apart from the general form, which is 0/0 here for a + b = 2 and for a + b = 1.
    matrix[..., 0, 0] = (a - b) / (a + b)
    matrix[..., 1, 0] = np.sqrt(4 * a * b / (a + b + 1)) / (a + b)
    a, b, i = a[..., None], b[..., None], np.arange(1, nodes)
    s = a + b + 2 * i
    matrix[..., i, i] = (a - b) * (a + b - 2) / ((s - 2) * s)
    i, s = i[1:], s[..., 1:]
    squared = 4 * i * (i + a - 1) * (i + b - 1) * (i + a + b - 2) / ((s - 2) ** 2 * (s - 1) * (s - 3))
    matrix[..., i, i - 1] = np.sqrt(squared)
    roots, vectors = np.linalg.eigh(matrix)
    return np.clip((1 + roots) / 2, 0, 1), vectors[..., 0, :] ** 2


def fit_prior(successes: npt.ArrayLike, samples: npt.ArrayLike) -> tuple[float, float]:
    """(a, b) of the Beta distribution of pass rates over a data set: empirical Bayes, beta-binomial likelihood.

    The maximiser within [0.05, 1e4]: given k of n, the prior counts as a successes and b failures, so a smaller a would
    let the first success ever seen raise a rate, hence about the weight, more than (a + 1) / a = 21 times. Where all
    samples succeed, or none does, the likelihood has no maximum (it grows for ever as a rate of 1 or 0 is approached)
    and the table says nothing of how rates differ: then (1, 1). Rows with samples 0 say nothing and are left out. Cost
    is one sort of the rows, then work on the distinct (k, n) only. Raises ValueError if no row has samples.
    """
    k, n = np.asarray(successes, np.float32).ravel(), np.asarray(samples, np.float32).ravel()
    k, n = k[n > 0], n[n > 0]
    if not len(n):
        raise ValueError("fit_prior: no prompt has been sampled yet; estimate pass rates first")
    if not k.any() or np.array_equal(k, n):
        return 1.0, 1.0
    pairs, count = np.unique(k + 1j * n, return_counts=True)
    k, n = pairs.real.astype(np.float64), pairs.imag.astype(np.float64)
    share = count / count.sum()

    def loss(log_prior: FloatArray) -> tuple[float, FloatArray]:
        a, b = np.exp(log_prior)
        value = share @ special.betaln(a + k, b + n - k) - special.betaln(a, b)
        total = special.psi(a + b) - share @ special.psi(a + b + n)
        slope_a = a * (share @ special.psi(a + k) - special.psi(a) + total)
        slope_b = b * (share @ special.psi(b + n - k) - special.psi(b) + total)
        return -value, -np.array([slope_a, slope_b])

    # Start: the variance of k/n is m(1−m) · (1/(s+1) + s/(s+1) · E[1/n]) with s = a + b.
    rate, noise = k / n, share @ (1 / n)
    mean = np.clip(share @ rate, 1e-3, 1 - 1e-3)
    spread = (share @ (rate - mean) ** 2) / (mean * (1 - mean))
    shrink = np.clip((spread - noise) / max(1 - noise, 1e-9), 0.01, 0.9)
    start = np.log(np.array([mean, 1 - mean]) * (1 / shrink - 1))
    bounds = [(np.log(0.05), np.log(1e4))] * 2
    log_prior = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14}).x
    return float(np.exp(log_prior[0])), float(np.exp(log_prior[1]))


def fit_exponents(successes: npt.ArrayLike, samples: npt.ArrayLike) -> tuple[float, float]:
    """(α, β) from the moments of the pass rates (PACED, "exponents from data").

    Over the prompts with 0 < p < 1, of mean m and variance v: s = m(1−m)/v − 1, α = m·s − 1, β = (1−m)·s − 1. Raises
    ValueError if no such prompt exists, if v ≥ m(1−m)/3 (the paper's condition), or if an exponent comes out negative.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    inner = (k > 0) & (k < n)
    remedy = "use fewer extreme prompts, more samples a prompt, or set alpha and beta by hand"
    if not inner.any():
        raise ValueError(f"fit_exponents: no prompt has a pass rate strictly between 0 and 1; {remedy}")
    rate = k[inner] / n[inner]
    m, v = float(rate.mean()), float(rate.var())
    bound = m * (1 - m) / 3
    if v == 0:
        raise ValueError(f"fit_exponents: all pass rates in (0, 1) are {m:.4g}, so their variance v is 0; {remedy}")
    # Rounding must not turn the boundary case (uniform pass rates: α = β = 0) into an error.
    if v > bound * (1 + 1e-12):
        raise ValueError(
            f"fit_exponents: pass rates with mean m={m:.4g} have variance v={v:.4g}, but the rule needs "
            f"v < m(1-m)/3 = {bound:.4g}; {remedy}"
        )
    s = m * (1 - m) / v - 1
    alpha, beta = m * s - 1, (1 - m) * s - 1
    if min(alpha, beta) < -1e-9:
        raise ValueError(
            f"fit_exponents: mean m={m:.4g} and variance v={v:.4g} give alpha={alpha:.4g}, beta={beta:.4g}; a negative "
            f"exponent weighs never-solved (always-solved) prompts without bound; {remedy}"
        )
    return max(alpha, 0.0), max(beta, 0.0)
