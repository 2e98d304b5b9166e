"""Did it work: held-out accuracy with intervals, and runs beside each other at equal steps and at equal tokens."""

from __future__ import annotations

import re
from collections import Counter as Count
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.report.run import Run
from paced_verl.report.tokens import Counter
from paced_verl.statistics import Estimate, bounded, difference

_CORE = re.compile(r"val-core/(?P<source>.+)/(?P<variable>[^/]+)/mean@(?P<samples>\d+)")


def problems(run: Run) -> dict[str, int]:
    """Held-out problems by data source, from ``data.val_files``; empty where one of these is gone.

    Of a run that validates on a part of them (``data.val_max_samples``) each source counts by its share.
    """
    named = run.setting("data.val_files", [])
    files = [Path(file).expanduser() for file in ([named] if isinstance(named, str) else named)]
    counts: Count[str] = Count()
    for file in files:
        try:
            counts.update(map(str, pq.read_table(file, columns=["data_source"])["data_source"].to_pylist()))
        except (OSError, pa.ArrowException, KeyError):
            return {}
    most, rows = run.setting("data.val_max_samples", -1), sum(counts.values())
    share = min(1.0, most / rows) if most > 0 and rows else 1.0
    return {source: int(count * share) for source, count in counts.items()}


def samples_per_problem(run: Run) -> int | None:
    """The n of verl's ``mean@n``; ``None`` before the first validation."""
    names = [name for values in run.metrics.values() for name in values]
    found = (_CORE.fullmatch(name) for name in names)
    return next((int(match["samples"]) for match in found if match), None)


def accuracies(run: Run, units: Mapping[str, int]) -> dict[int, Estimate]:
    """Held-out accuracy by step: the mean over data sources, with an interval over problems.

    verl logs means only, so the standard error is the largest that such means can have (:func:`bounded`).

    Args:
        run: With verl's ``val-core/<source>/<variable>/mean@n``, and ``val-aux/…/std@n`` where n > 1.
        units: Problems by source; without a source's count there is no interval.
    """
    found = {}
    for step, values in run.metrics.items():
        sources = [(match, values[match[0]]) for match in map(_CORE.fullmatch, values) if match]
        if sources:
            found[step] = _mean([_of_source(match, mean, values, units) for match, mean in sources])
    return found


def _of_source(match: re.Match[str], mean: float, values: Mapping[str, float], units: Mapping[str, int]) -> Estimate:
    within = values.get(match[0].replace("val-core", "val-aux", 1).replace("/mean@", "/std@"), 0.0)
    return bounded(mean, units.get(match["source"], 0), within)


def _mean(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent means."""
    error = float(np.sqrt(sum(part.standard_error**2 for part in parts))) / len(parts)
    return Estimate(sum(part.units for part in parts), sum(part.mean for part in parts) / len(parts), error)


@dataclass(frozen=True)
class Moment:
    """A validation of a run.

    Attributes:
        step: After which it was.
        tokens: Spent until then, where they were counted.
        accuracy: What it found.
    """

    step: int
    tokens: float | None
    accuracy: Estimate


@dataclass(frozen=True)
class Comparison:
    """Two runs at an equal budget: each at the last validation within it.

    Attributes:
        at: ``steps`` or ``tokens``.
        budget: How many.
        gain: first − other. Its error is that of different problems; both saw the same, so it is rather too large.
    """

    at: str
    budget: float
    first: Moment
    other: Moment

    @property
    def gain(self) -> Estimate:
        return difference(self.first.accuracy, self.other.accuracy)

    @property
    def separable(self) -> bool | None:
        """Whether the interval of the gain leaves 0 out; ``None`` without an interval."""
        low, high = self.gain.interval
        return None if np.isnan(low) else bool(low > 0 or high < 0)


def moments(run: Run, counter: Counter | None, units: Mapping[str, int]) -> list[Moment]:
    """The validations of a run in order."""
    spent = counter.cumulative(run) if counter else {}
    return [Moment(step, spent.get(step), found) for step, found in accuracies(run, units).items()]


def compare(first: Sequence[Moment], other: Sequence[Moment]) -> list[Comparison]:
    """At the last step that both have validated at, and at the tokens that both have spent."""
    found: list[Comparison] = []
    if both := {moment.step for moment in first} & {moment.step for moment in other}:
        found += _at("steps", max(both), first, other)
    ends = [moments[-1].tokens for moments in (first, other) if moments]
    if len(ends) == 2 and None not in ends:
        found += _at("tokens", min(end for end in ends if end is not None), first, other)
    return found


def _at(name: str, budget: float, first: Sequence[Moment], other: Sequence[Moment]) -> list[Comparison]:
    """One, or none where a run's first validation is behind the budget."""

    def within(moment: Moment) -> bool:
        spent = moment.step if name == "steps" else moment.tokens
        return spent is not None and spent <= budget

    ends = [moment for moments in (first, other) for moment in list(filter(within, moments))[-1:]]
    return [Comparison(name, budget, *ends)] if len(ends) == 2 else []
