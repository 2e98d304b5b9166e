"""The teacher's own pass rate on a prompt, and what it makes of the weight that the student's gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.pass_rates import HIGH, LOW, PassRateTable

FloatArray = npt.NDArray[np.float64]
Rule = Literal["gate", "min", "product"]
SOLVED = 0.5
"""A teacher solves a prompt if at least this share of its responses is correct."""


@dataclass(frozen=True)
class Reliability:
    """Weighs prompts by whether the teacher solves them.

    With the teacher's pass rate r = k/n and the student's weight w of a kernel whose largest weight is W:

        gate      w if r ≥ 1/2, else 0        product      w · r        min      min(w, W · r)

    A prompt of which the teacher has written nothing weighs w. Where r says 0 it is 0, also if w is not known.

    Attributes:
        table: Of the teacher's own responses; others write to it.
        rule: Which of these; ``None``: the table is for the record.
    """

    table: PassRateTable
    rule: Rule | None

    def __call__(self, weights: FloatArray, prompts: npt.NDArray[np.integer] | slice, peak: float) -> FloatArray:
        """What prompts weigh.

        Args:
            weights: What they weigh by the student's pass rate, float64 (P,); NaN: not known.
            prompts: Their positions, (P,).
            peak: W.
        """
        if self.rule is None:
            return weights
        rate = self.table.rates(prompts).astype(np.float64)
        known = ~np.isnan(rate)
        factor = np.where(known, rate >= SOLVED if self.rule == "gate" else rate, 1.0)
        weighed = np.minimum(weights, peak * factor) if self.rule == "min" else weights * factor
        return np.where(known, np.where(factor == 0, 0.0, weighed), weights)


def two_way(student: PassRateTable, teacher: PassRateTable) -> npt.NDArray[np.int64]:
    """How many prompts the student and the teacher solve so often: int64 (4, 4).

    Rows are the student's pass rate, columns the teacher's: below .2, .2 to .8, above .8, and not known.
    """
    student_bin, teacher_bin = _bins(student), _bins(teacher)
    return np.bincount(4 * student_bin + teacher_bin, minlength=16).reshape(4, 4)


def _bins(table: PassRateTable) -> npt.NDArray[np.int64]:
    rate = table.rates()
    return np.select([np.isnan(rate), rate < LOW, rate <= HIGH], [3, 0, 1], default=2)


def wasted(weights: FloatArray, student: PassRateTable, teacher: PassRateTable) -> tuple[float, float]:
    """Shares that say whether weight 0 wastes prompts that could teach.

    Args:
        weights: Raw weights by the student's pass rate alone, (N,); NaN: not known.

    Returns:
        The share of measured prompts that the student never solves and that weigh 0; and among those whose teacher's
        pass rate is known the share that the teacher solves (NaN where there are none).
    """
    measured = student.samples > 0
    hopeless = measured & (student.successes == 0) & (weights == 0)
    known = hopeless & (teacher.samples > 0)
    solved = teacher.successes >= SOLVED * teacher.samples
    share = hopeless.sum() / max(1, measured.sum())
    return float(share), float(solved[known].mean()) if known.any() else float("nan")
