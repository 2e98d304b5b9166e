"""What is read off a run's curve: accuracy at a cost, the area up to a cost, and the cost of an accuracy.

A curve is accuracy at points of the run, against what was spent until then. Between points it is linear in the cost.
Its first point is the start with what was paid before the first step (an estimate): up to there nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.problems import PROMPT
from scripts.experiments.evidence.regimes import REGIMES

FloatArray = npt.NDArray[np.float64]
PRICES = {"price 1:1:3": (1.0, 1.0, 3.0), "price 1:8:3": (1.0, 8.0, 3.0)}
"""Of a token that the student reads or writes, that the teacher does, and of one of a row that trains. Prompts count
wherever they go through a model."""
PROMPTS_FREE = "price 1:1:3, prompts free"
"""The same where reading prompts costs the student nothing: what is left where responses are much longer than they."""
AXES = ("step", "rows", "teacher", *PRICES, PROMPTS_FREE)
GRID = 65


def cost(run: Mapping[str, Sequence[float]], axis: str) -> FloatArray:
    """What a run had spent at each of its points, (points,).

    Steps, trained rows, teacher tokens, or a price in units of a token that the student reads or writes, estimates
    included.
    """
    if axis != PROMPTS_FREE and axis not in PRICES:
        return np.asarray(run[axis], np.float64)
    rows, student, estimate, teacher, trained = (
        np.asarray(run[name], np.float64) for name in ("rows", "student", "estimate", "teacher", "trained")
    )
    if axis == PROMPTS_FREE:
        return estimate - PROMPT * _samples(run) + teacher + 3 * trained
    of_student, of_teacher, of_training = PRICES[axis]
    # A row says of its trained tokens only those of the response.
    return of_student * (student + estimate) + of_teacher * teacher + of_training * (trained + PROMPT * rows)


def _samples(run: Mapping[str, Any]) -> int:
    """Samples that a run's estimates took, whose prompts its tokens hold.

    Raises:
        ValueError: It also samples later than before the first step, so that its row does not say how many.
    """
    rates = ARMS[run["arm"]].block["pass_rate"]
    refresh = run["refresh"] or rates["refresh"]
    if refresh not in ("never", "start") or run["stages"] != "forward" or run["changes"]:
        raise ValueError(f"{run['arm']}, {run['stages']}: its samples are not known")
    if refresh == "never" or ARMS[run["arm"]].for_free:
        return 0
    return (run["samples"] or rates["samples"]) * REGIMES[run["regime"]].prompts


def curve(run: Mapping[str, Sequence[float]], axis: str, of: str = "accuracy") -> tuple[FloatArray, FloatArray]:
    """Costs, increasing, and values at them.

    A point that costs nothing more than the one before it takes its place.
    """
    x, y = cost(run, axis), np.asarray(run[of], np.float64)
    last = np.append(np.diff(x) > 0, True)
    return x[last], y[last]


def value_at(x: FloatArray, y: FloatArray, at: float) -> float:
    """The value at a cost; NaN beyond what was spent."""
    return float(np.interp(at, x, y)) if at <= x[-1] * (1 + 1e-9) else float("nan")


def area(x: FloatArray, y: FloatArray, low: float, high: float) -> float:
    """Mean value over log cost between two costs."""
    if not 0 < low < high <= x[-1] * (1 + 1e-9):
        return float("nan")
    grid = np.linspace(np.log(low), np.log(high), GRID)
    return float(np.trapezoid(np.interp(np.exp(grid), x, y), grid) / (grid[-1] - grid[0]))


def areas(
    first: Mapping[str, Any], second: Mapping[str, Any], axis: str, until: float = float("inf"), since: float = 0.0
) -> tuple[float, float]:
    """Both runs' mean accuracy over the log costs that both have reached, from the first point of the second one on.

    ``second`` is the baseline: what it costs up to its first point is the smallest cost, whatever the other has paid.
    NaN where the costs in common do not pay for what one of the two had spent when it was first measured.

    Args:
        first, second: Runs.
        axis: Of the costs.
        until: The largest cost that counts.
        since: Points of the second one below this cost do not count as its first.
    """
    one, other = curve(first, axis), curve(second, axis)
    low, high = other[0][(other[0] > 0) & (other[0] >= since)][0], min(one[0][-1], other[0][-1], until)
    if not (affordable(first, axis, high) and affordable(second, axis, high)):
        return float("nan"), float("nan")
    return area(*one, low, high), area(*other, low, high)


def affordable(run: Mapping[str, Any], axis: str, at: float) -> bool:
    """Whether a cost pays for a run up to its first measurement after the start: below that nothing of it is known, and
    its curve says what the untrained student can."""
    measured = cost(run, axis)[np.asarray(run["step"]) > 0]
    return bool(measured[0] <= at * (1 + 1e-9))


def paid_at(run: Mapping[str, Any], axis: str, step: float) -> float:
    """What a run had spent after a step."""
    return float(np.interp(step, run["step"], cost(run, axis)))


def cost_of(x: FloatArray, y: FloatArray, target: float) -> float:
    """The first cost at which a value is reached; infinite where it is not."""
    reached = np.flatnonzero(y >= target)
    if not len(reached):
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    share = (target - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def at_equal(run: Mapping[str, Any], new: float, of: str = "second") -> float:
    """Another value of the run where its accuracy first reaches ``new``: the second skill at equal new accuracy.

    NaN where it never does, and where it does before the first step: what a run begins with it has not learned.
    """
    step = cost_of(*curve(run, "step"), new)
    return value_at(*curve(run, "step", of), step) if 0 < step < np.inf else float("nan")
