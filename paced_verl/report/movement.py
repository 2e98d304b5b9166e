"""What the student learned: how prompts moved between hopeless, frontier and mastered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from paced_verl.pacing.kernel import fit_prior
from paced_verl.pacing.pass_rates import HIGH, LOW, PassRateTable

GROUPS = ("unseen", "hopeless", "frontier", "mastered")
UNSEEN, HOPELESS, FRONTIER, MASTERED = range(4)

IntArray = npt.NDArray[np.int64]


def group(rates: npt.ArrayLike) -> IntArray:
    """Positions in ``GROUPS`` of pass rates: below LOW, up to HIGH, above; NaN is unseen."""
    rates = np.asarray(rates, np.float64)
    found = np.where(rates < LOW, HOPELESS, np.where(rates > HIGH, MASTERED, FRONTIER))
    return np.where(np.isnan(rates), UNSEEN, found)


def two_way(rows: PassRateTable, columns: PassRateTable) -> IntArray:
    """int64 (4, 4): prompts by their group in two tables over the same prompts."""
    pairs = group(rows.rates()) * len(GROUPS) + group(columns.rates())
    return np.bincount(pairs, minlength=len(GROUPS) ** 2).reshape(len(GROUPS), len(GROUPS))


def shares(table: PassRateTable, levels: int) -> npt.NDArray[np.float64]:
    """float64 (levels + 1,): shares of the measured prompts whose pass rate is nearest to 0, 1/levels … 1.

    NaN where no prompt is measured.
    """
    rates = table.rates()[table.samples > 0]
    counts = np.bincount(np.round(rates * levels).astype(np.int64), minlength=levels + 1)
    return counts / len(rates) if len(rates) else np.full(levels + 1, np.nan)


def fell(first: PassRateTable, last: PassRateTable) -> npt.NDArray[np.bool_]:
    """bool (N,): measured in both tables, and in a lower group in the last."""
    before, after = group(first.rates()), group(last.rates())
    return (after != UNSEEN) & (after < before)


def falls_by_chance(first: PassRateTable, last: PassRateTable) -> float:
    """How many prompts would seem to fall if no pass rate had changed.

    A second measurement of the same prompt falls differently: given k of n, it is beta-binomial under the Beta prior
    fitted to the first table. Counts that decay has made fractions are rounded.
    """
    both = (first.samples > 0) & (last.samples > 0)
    if not both.any():
        return 0.0
    prior = fit_prior(first.successes, first.samples)
    kept = (np.round(counts[both]) for counts in (first.successes, first.samples, last.samples))
    cases, many = np.unique(
        np.stack([next(kept), *(np.maximum(counts, 1) for counts in kept)]), axis=1, return_counts=True
    )
    return float(sum(count * _falls(k, n, again, prior) for k, n, again, count in zip(*cases, many, strict=True)))


def _falls(k: float, n: float, again: float, prior: tuple[float, float]) -> float:
    """The chance that ``again`` new samples put a prompt with k of n into a lower group."""
    outcomes = np.arange(int(again) + 1)
    lower = group(outcomes / again) < group(k / n)
    return float(stats.betabinom.pmf(outcomes[lower], int(again), prior[0] + k, prior[1] + n - k).sum())


@dataclass(frozen=True)
class Path:
    """A prompt's way.

    Attributes:
        prompt: Its position in the training set.
        rates: Its pass rate by steps done, where it was measured.
        counts: (successes, samples) at the same moments.
    """

    prompt: int
    rates: dict[int, float]
    counts: dict[int, tuple[float, float]]

    @property
    def groups(self) -> list[str]:
        """The groups it was in, in order, without repetitions in a row."""
        names = [GROUPS[place] for place in group(list(self.rates.values()))]
        return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def path(prompt: int, tables: Mapping[int, PassRateTable]) -> Path:
    """The way of a prompt through tables by steps done."""
    seen = {
        step: (float(table.successes[prompt]), float(table.samples[prompt]))
        for step, table in tables.items()
        if table.samples[prompt] > 0
    }
    return Path(prompt, {step: k / n for step, (k, n) in seen.items()}, seen)


def risen(tables: Mapping[int, PassRateTable], most: int) -> list[int]:
    """Prompts that went from hopeless to mastered: first those seen at the frontier in between, then by their gain."""
    first, *_, last = tables.values()
    between = np.zeros(len(first), bool)
    for table in list(tables.values())[1:-1]:
        between |= group(table.rates()) == FRONTIER
    wanted = (group(first.rates()) == HOPELESS) & (group(last.rates()) == MASTERED)
    return _largest(wanted, between, last.rates() - first.rates(), most)


def fallen(tables: Mapping[int, PassRateTable], most: int) -> list[int]:
    """Prompts that fell into a lower group, those that were mastered first; then the largest loss."""
    first, *_, last = tables.values()
    mastered = group(first.rates()) == MASTERED
    return _largest(fell(first, last), mastered, first.rates() - last.rates(), most)


def _largest(
    wanted: npt.NDArray[np.bool_], ahead: npt.NDArray[np.bool_], change: npt.NDArray[np.float32], most: int
) -> list[int]:
    places = np.flatnonzero(wanted)
    return places[np.lexsort((-change[places], ~ahead[places]))][:most].tolist()
