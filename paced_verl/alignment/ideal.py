"""The gradient that raises success most, and how noisy a measured one is.

All arrays are float64; the last axis is the support of a node, others are nodes. Where nodes have fewer tokens than the
widest one, p is 0 in the places that are left, and they count for nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def success(k: npt.ArrayLike, n: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Measured Q = k / n and the unbiased variance of it, Q (1 − Q) / (n − 1), of 0/1 outcomes.

    Q is NaN without a visit, the variance with fewer than two.
    """
    successes, visits = np.asarray(k, np.float64), np.asarray(n, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(visits > 0, successes / visits, np.nan)
        return rate, np.where(visits > 1, rate * (1 - rate) / (visits - 1), np.nan)


def value(p: FloatArray, q_of_success: FloatArray) -> FloatArray:
    """(…,) V = Σ p Q."""
    return np.asarray(np.sum(p * _where(p, q_of_success), axis=-1))


def ideal_gradient(p: FloatArray, q_of_success: FloatArray) -> FloatArray:
    """(…, m) p_j (Q_j − V): the derivative of V by the logits of the node. It sums to 0."""
    rates = _where(p, q_of_success)
    return np.asarray(p * (rates - value(p, rates)[..., None]))


def noise_trace(p: FloatArray, variance: FloatArray) -> FloatArray:
    """(…,) the trace of the measured gradient's covariance, for measurements of variance (…, m) that are independent.

    g = A Q with A = diag(p) − p pᵀ, so it is Σ_j var_j Σ_i A_ij², which is unbiased with an unbiased variance.
    """
    squares = np.sum(p**2, axis=-1, keepdims=True)
    columns = p**2 * ((1 - p) ** 2 + squares - p**2)  # Σ_i A_ij²
    return np.asarray(np.sum(columns * _where(p, variance), axis=-1))


def _where(p: FloatArray, values: FloatArray) -> FloatArray:
    """0 where there is no token, so that a NaN there does no harm."""
    return np.where(p > 0, values, 0.0)
