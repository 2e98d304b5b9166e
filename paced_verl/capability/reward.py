"""What a decision is worth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def protected_capabilities(r: FloatArray, top: int) -> npt.NDArray[np.bool_]:
    """Which capabilities must not be lost: the ``top`` largest of r (C,), with all that equal the last. Bool (C,).

    What is not required at all is not protected.
    """
    if top <= 0:
        return np.zeros(len(r), bool)
    return np.asarray((r >= np.sort(r)[::-1][min(top, len(r)) - 1]) & (r > 0))


def reward(
    r: FloatArray,
    delta: FloatArray,
    beta: float = 0.0,
    protected: npt.NDArray[np.bool_] | None = None,
    lam: float = 0.0,
    cost_share: npt.ArrayLike = 0.0,
) -> FloatArray:
    """r · Δs − β Σ_{protected} r_c [−Δs_c]₊ − λ × cost (arXiv 2605.11290), in points of the score.

    Args:
        r: (C,) requirement.
        delta: (…, C) changes of the scores.
        beta: How much more a loss of what is protected counts than it does already.
        protected: (C,) bool.
        lam: Points that the whole budget would be worth.
        cost_share: (…) cost as a share of the whole budget. Tokens themselves would swamp the gains.

    Returns:
        (…).
    """
    lost = np.maximum(-delta, 0) if protected is None else np.maximum(-delta, 0) * protected
    penalty = beta * (lost @ r) if protected is not None else 0.0
    return np.asarray(delta @ r - penalty - lam * np.asarray(cost_share))
