"""What a task requires: weights r with ΔU ≈ r · Δs, from short interventions (arXiv 2605.11290).

ΔU and Δs are both taken from the same baseline: without that, r has to explain the utility that was there before. A
requirement from the text of a task's card is this r as the target of a head over a sentence encoder's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.special import stdtrit

from paced_verl.errors import PacedError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Requirement:
    """Weights of the capabilities.

    Attributes:
        r: (C,) on the simplex.
        covariance: (C, C) of what the interventions alone say, along the simplex: its rows add up to 0.
        interval: (C, 2) 95 %, within [0, 1].
    """

    r: FloatArray
    covariance: FloatArray
    interval: FloatArray


def fit_requirement(
    utility: FloatArray,
    scores: FloatArray,
    base_utility: float,
    base_scores: FloatArray,
    weight: FloatArray | None = None,
    entropy: float = 0.0,
) -> Requirement:
    """Minimise mean w (ΔU − r · Δs)² − entropy × H(r) on the simplex.

    Intervals are those of the regression with Σ r = 1 alone, whose t statistics are exact; the limits at 0 and 1 and
    the entropy move r, but say nothing of what is known. Noise in Δs is not allowed for: it makes
    r more even.

    Args:
        utility: (M,) after each intervention.
        scores: (M, C) after each.
        base_utility: Of the student that all interventions began with.
        base_scores: (C,) its scores.
        weight: (M,) precision of each, relative; ``None``: all the same.
        entropy: What an even r is worth, in squared points of U; ∞: r is uniform.

    Raises:
        PacedError: There are not enough interventions, or they do not tell the capabilities apart.
    """
    count, size = scores.shape
    if count <= size - 1:
        raise PacedError(
            f"{count} interventions for {size} capabilities: it takes {size} or more, better four times that"
        )
    root = np.sqrt(np.ones(count) if weight is None else weight / np.mean(weight))
    y, x = root * (utility - base_utility), root[:, None] * (scores - base_scores)
    uniform = np.full(size, 1 / size)
    tangent = null_space(np.ones((1, size)))
    inner = x @ tangent
    if np.linalg.matrix_rank(inner) < size - 1:
        raise PacedError("the interventions do not tell the capabilities apart: train on other mixes, too")
    free = uniform + tangent @ np.linalg.lstsq(inner, y - x @ uniform, rcond=None)[0]
    freedom = count - (size - 1)
    variance = float(np.sum((y - x @ free) ** 2)) / freedom
    covariance = variance * tangent @ np.linalg.inv(inner.T @ inner) @ tangent.T
    half = stdtrit(freedom, 0.975) * np.sqrt(np.diag(covariance))
    interval = np.clip(np.stack([free - half, free + half], axis=1), 0, 1)
    return Requirement(_on_simplex(x, y, entropy), covariance, interval)


def _on_simplex(x: FloatArray, y: FloatArray, entropy: float) -> FloatArray:
    count, size = x.shape
    if np.isinf(entropy):
        return np.full(size, 1 / size)
    unit = float(np.mean(y**2)) + entropy or 1.0  # the solver's tolerances are absolute

    def loss(r: FloatArray) -> tuple[float, FloatArray]:
        error = y - x @ r
        value = np.mean(error**2) + entropy * np.sum(r * np.log(r))
        return value / unit, (-2 * x.T @ error / count + entropy * (np.log(r) + 1)) / unit

    found = minimize(
        loss,
        np.full(size, 1 / size),
        jac=True,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * size,
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones(size)},
        options={"maxiter": 500, "ftol": 1e-15},
    )
    r = np.clip(found.x, 0, 1)
    return np.asarray(r / r.sum())
