"""What the rows of a step are told, decided when their prompts are drawn: plain numbers, no verl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl import fields
from paced_verl.pacing.schedule import Stage


@dataclass(frozen=True)
class Route:
    """Which losses a prompt gets by its pass rate, beside a task reward.

    Attributes:
        mastered: From this pass rate on: neither distillation nor task reward.
        hopeless: Up to this pass rate: self-distillation alone.
    """

    mastered: float
    hopeless: float


def row_instructions(
    weights: npt.NDArray[np.float32],
    *,
    stage: Stage,
    step: int,
    n: int,
    group_weights: npt.NDArray[np.float64] | None = None,
    rates: npt.NDArray[np.float32] | None = None,
    route: Route | None = None,
) -> dict[str, list[Any]]:
    """The fields (:mod:`paced_verl.fields`) of the rows of B prompts, one entry a prompt.

    Args:
        weights: Loss weights under which the prompts were drawn, (B,).
        stage: The stage that trains them.
        step: The step they are drawn in.
        n: Responses per prompt.
        group_weights: What a response weighs with 0 … n − 1 correct ones beside it, (n,), where the group that is about
            to be sampled decides; ``None``: ``weights`` do.
        rates: Pass rates, (B,), NaN where unknown; read by ``route`` alone.
        route: Which losses a prompt gets by its pass rate; ``None``: all get both.
    """
    coef, prompts = stage.coef_at(step), len(weights)
    rows: dict[str, list[Any]] = {
        fields.STAGE: [stage.index] * prompts,
        fields.RESPONSES: [stage.responses] * prompts,
        fields.MIX: [stage.mix(step)] * prompts,
        fields.WEIGHT: (weights * coef).tolist(),
        fields.TASK: [1.0] * prompts,
        fields.SELF: [False] * prompts,
        fields.SESSIONS: [n] * prompts,
        fields.GROUP_WEIGHTS: [None if group_weights is None else (group_weights * coef).tolist()] * prompts,
        fields.TARGET: [None] * prompts,
    }
    if route is not None:
        assert rates is not None
        _route(rows, rates, route, coef)
    return rows


def _route(rows: dict[str, list[Any]], rates: npt.NDArray[np.float32], route: Route, coef: float) -> None:
    """Mastered prompts get neither loss, hopeless ones only self-distillation; unknown ones (NaN) get both."""
    for i, rate in enumerate(rates.tolist()):
        if rate >= route.mastered:
            rows[fields.WEIGHT][i], rows[fields.TASK][i] = 0.0, 0.0
        elif rate <= route.hopeless:
            rows[fields.WEIGHT][i], rows[fields.TASK][i], rows[fields.SELF][i] = coef, 0.0, True
