"""Is the method healthy: a run's metrics against the ranges of ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paced_verl.report.advice import ADVICE
from paced_verl.report.run import Run

FloatArray = npt.NDArray[np.float64]
TAIL_LIMIT = 0.03
Judgement = tuple[str, bool]
"""What was found, in words, and whether it is healthy."""


@dataclass(frozen=True)
class Finding:
    """One metric of a run.

    Attributes:
        metric: Its name in the log.
        title: What it is.
        found: Its value in words.
        healthy: The range it should be in.
        ok: Whether it is.
        remedy: What to do if it is not.
    """

    metric: str
    title: str
    found: str
    healthy: str
    ok: bool
    remedy: str


def examine(run: Run) -> list[Finding]:
    """Judge every metric of :data:`paced_verl.report.advice.ADVICE` that the run has logged."""
    found = []
    for metric, judge in _JUDGES.items():
        values = np.array(list(run.series(metric).values()))
        if len(values) and (judgement := judge(values, run)) is not None:
            advice = ADVICE[metric]
            found.append(Finding(metric, advice.title, judgement[0], advice.healthy, judgement[1], advice.remedy))
    return found


def _end(values: FloatArray) -> float:
    """The mean of the last tenth."""
    return float(values[-max(1, len(values) // 10) :].mean())


def _start(values: FloatArray) -> float:
    """The mean of the first tenth."""
    return _end(values[::-1])


def _at_least(limit: float) -> Callable[[FloatArray, Run], Judgement]:
    return lambda values, run: (f"{_end(values):.2f}", _end(values) > limit)


def _below(limit: float, digits: int = 2) -> Callable[[FloatArray, Run], Judgement]:
    return lambda values, run: (f"{_end(values):.{digits}f}", _end(values) < limit)


def _way(values: FloatArray) -> str:
    return f"{_start(values):.0%} → {_end(values):.0%}"


def _low(values: FloatArray, run: Run) -> Judgement:
    return _way(values), _start(values) <= 0.5


def _high(values: FloatArray, run: Run) -> Judgement:
    return _way(values), _start(values) <= 0.8


def _frontier(values: FloatArray, run: Run) -> Judgement:
    low = np.array(list(run.series("paced/pass_rate/low").values()))
    worse = len(low) > 0 and _end(values) < _start(values) and _end(low) > _start(low) + 0.05
    return _way(values), not worse


def _staleness(values: FloatArray, run: Run) -> Judgement:
    lengths = [last - first + 1 for first, last in _stages(run)]
    return f"{_end(values):.0f} steps", _end(values) < max(lengths, default=run.step) / 2


def _stages(run: Run) -> list[tuple[int, int]]:
    """First and last step of each stage, as planned or else as trained."""
    planned = [(stage["first"], stage["last"]) for stage in run.record.get("schedule", [])]
    return planned or [(first, last) for _, first, last in run.stages]


def _falls(values: FloatArray, run: Run) -> Judgement | None:
    """By the means of the first and of the last fifth of each stage of 10 steps or more."""
    by_step, ways = run.series("paced/divergence/value"), []
    for stage, first, last in run.stages:
        steps = np.array([by_step[step] for step in range(first, last + 1) if step in by_step])
        if len(steps) >= 10:
            fifth = len(steps) // 5
            ways.append((stage, float(steps[:fifth].mean()), float(steps[-fifth:].mean())))
    words = "; ".join(f"stage {stage}: {before:.3g} → {after:.3g} nats" for stage, before, after in ways)
    return (words, all(after < before for _, before, after in ways)) if ways else None


def _skipped(values: FloatArray, run: Run) -> Judgement | None:
    size = run.setting("data.train_batch_size")
    return None if size is None else (f"{values.mean() / size:.0%} of the prompts", bool(values.mean() < 0.1 * size))


def _failed(values: FloatArray, run: Run) -> Judgement:
    return f"{values.sum():.0f}", not values.any()


def clip_share(run: Run) -> float | None:
    """Share of the steps whose gradient was longer than ``actor.grad_clip``; ``None`` where one is not known."""
    limit, norms = run.setting("actor_rollout_ref.actor.grad_clip"), run.series("actor/grad_norm")
    return float(np.mean(np.array(list(norms.values())) > limit)) if limit and norms else None


def _clipped(values: FloatArray, run: Run) -> Judgement | None:
    share = clip_share(run)
    return None if share is None else (f"{share:.0%} of the steps", share < 0.5)


_JUDGES: dict[str, Callable[[FloatArray, Run], Judgement | None]] = {
    "paced/weight/ess": _at_least(0.3),
    "paced/weight/zero_share": _below(0.5),
    "paced/weight/max": _below(10, digits=1),
    "paced/pass_rate/low": _low,
    "paced/pass_rate/frontier": _frontier,
    "paced/pass_rate/high": _high,
    "paced/sampler/entropy": _at_least(0.8),
    "paced/sampler/staleness": _staleness,
    "paced/divergence/value": _falls,
    "paced/divergence/tail_mass": _below(TAIL_LIMIT, digits=3),
    "paced/targets/skipped": _skipped,
    "paced/rollout/failed": _failed,
    "actor/grad_norm": _clipped,
}
