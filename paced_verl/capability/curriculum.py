"""Which level of difficulty a capability's next prompts are of. Levels go from easy to hard."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paced_verl.errors import PacedError

FloatArray = npt.NDArray[np.float64]
TERTILES = ((0.3, (0.1, 0.8, 0.1)), (0.7, (0.1, 0.5, 0.4)), (1.0, (0.05, 0.2, 0.75)))
"""Shares of easy, medium and hard prompts until a share of the budget is spent, as the authors' code has them."""


def frontier(successes: npt.ArrayLike, samples: npt.ArrayLike, draw: int, seed: int = 0, target: float = 0.5) -> int:
    """The level whose pass rate is nearest to the target, by one draw from its posterior Beta(1 + k, 1 + n − k) each.

    A level that was hardly sampled is drawn far and wide, so it is tried about as often as it may be the one.

    Args:
        successes: (L,) k of each level; they may have decayed.
        samples: (L,) n.
        draw: Counts the draws of a capability: the same draw with the same counts is the same level.
        seed: Of the run and the capability.
        target: Pass rate in (0, 1).

    Raises:
        PacedError: Counts that cannot be.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    if k.shape != n.shape or k.ndim != 1 or not k.size or (k < 0).any() or (k > n).any():
        raise PacedError(f"expected 0 ≤ successes ≤ samples for each level, got {k} of {n}")
    rates = np.random.default_rng([seed, draw]).beta(1 + k, 1 + n - k)
    return int(np.argmin(np.abs(rates - target)))


def tertile_shares(progress: float) -> FloatArray:
    """(3,) shares of easy, medium and hard prompts at a share of the budget in [0, 1]: the paper's schedule."""
    return np.array(next((shares for until, shares in TERTILES if progress < until), TERTILES[-1][1]))


def tertiles(progress: float, levels: int, draw: int, seed: int = 0) -> int:
    """A level by the paper's schedule: a third of the levels by its shares, then one in it with equal chances."""
    if levels < 1:
        raise PacedError(f"a capability has one level or more, got {levels}")
    rng = np.random.default_rng([seed, draw])
    third = np.array_split(np.arange(levels), 3)
    shares = tertile_shares(progress) * [len(part) > 0 for part in third]
    return int(rng.choice(third[rng.choice(3, p=shares / shares.sum())]))
