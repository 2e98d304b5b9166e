"""The candidate mixes of a policy that chooses instead of optimising (arXiv 2605.11290)."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def actions(
    last: FloatArray | None,
    r: FloatArray,
    top: int = 3,
    grid: tuple[float, ...] = (0.25, 0.5, 0.75),
    step: float = 0.1,
) -> FloatArray:
    """Sparse mixes over what is required most, and small changes of the last mix.

    Args:
        last: (C,) the last mix, or ``None``.
        r: (C,) requirement; what it gives nothing to is in no sparse mix.
        top: How many capabilities sparse mixes are made of, one or two at a time.
        grid: Shares of the first of two.
        step: Share that a change moves from one capability to another, or all that there is.

    Returns:
        (A, C), each mix once.
    """
    size = len(r)
    pool = [int(i) for i in np.argsort(-r, kind="stable")[:top] if r[i] > 0]
    corners = np.eye(size)
    found = [corners[i] for i in pool]
    found += [share * corners[i] + (1 - share) * corners[j] for i, j in combinations(pool, 2) for share in grid]
    if last is not None:
        found.append(last)
        for giver, taker in permutations(range(size), 2):
            moved = min(step, float(last[giver]))
            if moved > 0:
                found.append(last + moved * (corners[taker] - corners[giver]))
    return np.unique(np.round(found, 12), axis=0)
