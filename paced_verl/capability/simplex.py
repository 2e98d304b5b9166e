"""The simplex of mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.errors import PacedError, nearest

FloatArray = npt.NDArray[np.float64]


def project(point: npt.ArrayLike, floor: float = 0.0) -> FloatArray:
    """The nearest mix, in the Euclidean sense, that leaves every capability a share of ``floor``: (C,) to (C,).

    A mix that does so already comes back as it is.

    Raises:
        PacedError: The floors of all capabilities are more than there is to share.
    """
    values = np.asarray(point, np.float64) - floor
    total = 1 - floor * len(values)
    if total < 0:
        raise PacedError(f"floor={floor} for each of {len(values)} capabilities is more than 1 in total; lower it")
    if values.min() >= 0 and abs(values.sum() - total) < 1e-15 * len(values):
        return values + floor
    falling = np.sort(values)[::-1]
    thresholds = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    cut = thresholds[np.flatnonzero(falling >= thresholds)[-1]]
    return np.asarray(np.maximum(values - cut, 0) + floor)


def hellinger(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Squared Hellinger distance of two mixes, 1 − Σ √(w v): 0 where they are the same, 1 where they share nothing."""
    return float(1 - np.sqrt(np.asarray(first, np.float64) * np.asarray(second, np.float64)).sum())


def shares_of(by_name: Mapping[Any, Any], names: Sequence[str], what: str) -> FloatArray:
    """Shares by the names of capabilities as a mix, (C,); 0 for one that is not named.

    Args:
        by_name: What a person wrote.
        names: Of the capabilities.
        what: Whose shares they are, for errors.

    Raises:
        PacedError: A name is no capability, a share no number, or together they are no distribution.
    """
    found = np.zeros(len(names))
    for name, share in by_name.items():
        if name not in names:
            raise PacedError(f"{what}: no capability {name!r}. {nearest(str(name), names)}")
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise PacedError(f"{what}: expected a number for {name}, got {share!r}")
        found[names.index(name)] = share
    if not (found >= 0).all() or abs(found.sum() - 1) > 1e-6:
        raise PacedError(f"{what}: expected shares >= 0 that add up to 1, got {dict(by_name)}")
    return found
