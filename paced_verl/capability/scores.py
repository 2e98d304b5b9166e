"""What probes say of each capability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Attributes:
    mean: (C,) mean pass rate of a capability's probes.
    se: (C,) its error by the samples alone: the probes are the same ones every time, so their own choice changes no
        difference. Never 0: a probe counts as answered once more each way.
    length: (C,) mean tokens of a response.
    """

    mean: FloatArray
    se: FloatArray
    length: FloatArray


def noise(successes: npt.ArrayLike, samples: npt.ArrayLike) -> FloatArray:
    """Variance of k/n by the samples alone, of each probe; never 0, as it counts as answered once more each way."""
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    p = (k + 1) / (n + 2)
    return np.asarray(p * (1 - p) / np.maximum(n, 1))


def scores_of(successes: IntArray, samples: IntArray, tokens: IntArray, probes: Sequence[int]) -> Scores:
    """From counts of all probes, those of one capability after those of the other.

    Args:
        successes, samples, tokens: (P,): correct responses, responses, tokens of all of them.
        probes: Of each capability, (C,); they add up to P. Of each one some have a sample.

    Raises:
        ValueError: A capability of which no response was scored.
    """
    ends = np.cumsum(probes)[:-1]
    parts = [np.split(values.astype(np.float64), ends) for values in (successes, samples, tokens)]
    found = []
    for k, n, written in zip(*parts, strict=True):
        seen = n > 0
        if not seen.any():
            raise ValueError("no response to the probes of a capability was scored")
        k, n = k[seen], n[seen]
        found.append((np.mean(k / n), np.sqrt(np.sum(noise(k, n))) / len(n), written.sum() / n.sum()))
    return Scores(*np.array(found).T)
