"""What was expected before any run with seeds of 100 and more.

Written down after the interventions and the calibration's runs of two fixed mixes and the static one, with seeds 0 to
2. Nothing that a deciding policy had reached had been looked at. Words and intervals are not changed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.experiments.capability.contrasts import STATIC, Measure, against, area, hurts, utility
from scripts.experiments.evidence.stats import Difference


@dataclass(frozen=True)
class Prediction:
    """A difference, and the interval its mean is expected in.

    Attributes:
        name: Short, once.
        arm, other: What is compared.
        expected: Of the mean.
        measure: Of what; the final U by default.
        phase: Of ``arm``; the other one is always of ``policies``.
    """

    name: str
    arm: str
    expected: tuple[float, float]
    other: str = STATIC
    measure: Measure = utility
    phase: str = "policies"


PREDICTIONS = (
    Prediction("uniform is near", "uniform", (-0.02, 0.03)),
    Prediction("one_hot is no better", "one_hot", (-0.06, 0.02)),
    Prediction("kl_headroom spends on what is out of reach", "kl_headroom", (-0.1, -0.01)),
    Prediction("gains does no harm", "gains", (-0.005, 0.03)),
    Prediction("gains is better over the run", "gains", (0.0, 0.03), measure=area),
    Prediction("read loses", "read", (-0.15, -0.02)),
    Prediction("greedy loses", "greedy", (-0.15, -0.02)),
    Prediction("exploration makes no difference", "read", (-0.02, 0.02), other="greedy"),
    Prediction("read hurts more often", "read", (0.0, 0.2), measure=hurts),
    Prediction("without deep", "without deep", (0.01, 0.08)),
    Prediction("by headroom", "by headroom", (-0.05, 0.005)),
    Prediction("gains with more probes", "gains", (0.0, 0.05), phase="more probes"),
    Prediction("more probes help gains", "gains", (0.0, 0.03), other="gains", phase="more probes"),
    Prediction("more probes do not save read", "read", (-0.15, -0.01), phase="more probes"),
    # These were written down later, after all of the others had been run, and before the first of theirs.
    Prediction("reading makes no difference to gains", "gains", (-0.02, 0.02), other="gains", phase="probes read"),
    Prediction("reading makes no difference to read", "read", (-0.02, 0.02), other="read", phase="probes read"),
)


def of(prediction: Prediction, rows: Sequence[dict[str, Any]]) -> Difference:
    """What a prediction is about."""
    p = prediction
    return against(rows, p.arm, p.measure, p.phase, p.other)
