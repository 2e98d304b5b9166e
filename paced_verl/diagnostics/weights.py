"""What a table of pass rates implies: the weights' spread, what a sampler saves, and what fewer samples would give.

Gradients of all prompts count as equally long and independent here: what is compared is the variance that weights
alone bring into a batch's gradient. Prompts that nobody has sampled are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from paced_verl.errors import PacedError
from paced_verl.pacing.kernel import Kernel, fit_exponents, fit_prior

FloatArray = npt.NDArray[np.float64]
POWERS = (0.0, 0.5, 1.0)
SAMPLES = (1, 2, 4, 8, 16)


def effective_share(weights: FloatArray) -> float:
    """Kish's effective sample size over the number of prompts, (Σw)² / (N Σw²): 1 where all weigh the same."""
    return float(weights.mean() ** 2 / np.mean(weights**2))


def rows_needed(weights: FloatArray, power: float) -> float:
    """Rows for the variance that one row with equal weights has, where prompts are drawn by q ∝ w^power.

    A drawn prompt's loss weighs w̃/(N q), so its second moment is Σ w̃²/(N² q). 1 / effective share at power 0, 1 at
    power 1.
    """
    positive = weights[weights > 0] / weights.mean()
    mass = positive**power if power else np.ones(len(positive))
    total = mass.sum() if power else float(len(weights))  # at power 0 prompts of weight 0 are drawn, too
    return float(np.sum(positive**2 / mass) * total / len(weights) ** 2)


def efficiency(kernel: Kernel, samples: int, prior: tuple[float, float]) -> float:
    """cos² between the weights that K samples a prompt give and those of the true pass rates p ~ Beta(prior).

    Of what a step in the direction of the true weights gains, the share that one by the estimated weights does.
    Exact: over the beta-binomial distribution of k, with the moments of w(p) given k in closed form.

    Args:
        kernel: A ``beta`` kernel; its exponents are those of the true weights, too.
        samples: K.
        prior: (a, b) of the pass rates' distribution.
    """
    k = np.arange(samples + 1)
    probability = stats.betabinom.pmf(k, samples, *prior)
    expected = _true(kernel, prior, 1)(k, samples)
    square = float(_true(kernel, prior, 2)(0, 0))
    weights = kernel(k, samples)
    estimated = float(probability @ weights**2)
    return float((probability @ (weights * expected)) ** 2 / (square * estimated)) if estimated else 0.0


def _true(kernel: Kernel, prior: tuple[float, float], moment: int) -> Kernel:
    """E[w(p)^moment | k of n]."""
    alpha, beta = moment * kernel.alpha, moment * kernel.beta
    return replace(kernel, estimate="posterior", prior=prior, alpha=alpha, beta=beta)


@dataclass(frozen=True)
class Price:
    """What estimating every pass rate with K samples costs and gives.

    Attributes:
        rollouts: K × prompts.
        empirical: :func:`efficiency` of the weights of k/K.
        posterior: Of those expected under the fitted prior.
    """

    samples: int
    rollouts: int
    empirical: float
    posterior: float


@dataclass(frozen=True)
class Diagnosis:
    """What a table implies for a ``beta`` kernel.

    Attributes:
        prompts: Sampled prompts.
        samples: Samples a prompt, on average.
        prior: (a, b) fitted to them.
        exponents: (α, β) by moments, or why the table has none.
        zero_share: Prompts whose empirical weight is 0.
        effective_share: Of the empirical and of the posterior weights.
        rows: :func:`rows_needed` of the posterior weights by power of the sampler.
        prices: By K.
    """

    prompts: int
    samples: float
    prior: tuple[float, float]
    exponents: tuple[float, float] | str
    zero_share: float
    effective_share: dict[str, float]
    rows: dict[float, float]
    prices: list[Price]


def diagnose(successes: npt.ArrayLike, samples: npt.ArrayLike, alpha: float = 1.0, beta: float = 1.0) -> Diagnosis:
    """Say what a table of pass rates implies.

    Args:
        successes: (N,) counts.
        samples: (N,) counts.
        alpha: Exponent of p.
        beta: Exponent of 1 − p.

    Raises:
        PacedError: No prompt has been sampled, or every one weighs 0.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    k, n = k[n > 0], n[n > 0]
    if not len(n):
        raise PacedError("No prompt of this table has been sampled yet, so it says nothing of weights.")
    prior = fit_prior(k, n)
    empirical = Kernel(alpha=alpha, beta=beta)
    posterior = replace(empirical, estimate="posterior", prior=prior)
    weights = {"empirical": empirical(k, n), "posterior": posterior(k, n)}
    try:
        exponents: tuple[float, float] | str = fit_exponents(k, n)
    except ValueError as error:
        exponents = str(error)
    return Diagnosis(
        prompts=len(n),
        samples=float(n.mean()),
        prior=prior,
        exponents=exponents,
        zero_share=float((weights["empirical"] == 0).mean()),
        effective_share={name: effective_share(w) if w.any() else 0.0 for name, w in weights.items()},
        rows={power: rows_needed(weights["posterior"], power) for power in POWERS},
        prices=[
            Price(count, count * len(n), *(efficiency(kernel, count, prior) for kernel in (empirical, posterior)))
            for count in SAMPLES
        ],
    )
