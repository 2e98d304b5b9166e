"""What the rows of a step are told, decided when their prompts are drawn: plain numbers, no verl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl import fields
from paced_verl.pacing.kernel import weights_by_successes
from paced_verl.pacing.sampler import PassRateSampler
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
    prompts: npt.NDArray[np.int64],
    *,
    stage: Stage,
    step: int,
    n: int,
    sampler: PassRateSampler,
    group_weights: bool = False,
    route: Route | None = None,
) -> dict[str, list[Any]]:
    """The fields (:mod:`paced_verl.fields`) of the rows of these prompts, one entry a prompt.

    Args:
        prompts: Positions in the training set, as drawn.
        stage: The stage that trains them.
        step: The step they are drawn in.
        n: Responses per prompt.
        sampler: Knows the weights they were drawn under.
        group_weights: Weigh each response by the others of the group that is about to be sampled, not by the table.
        route: Which losses a prompt gets by its pass rate; ``None``: all get both.
    """
    coef = stage.coef_at(step)
    rows: dict[str, list[Any]] = {
        fields.STAGE: [stage.index] * len(prompts),
        fields.RESPONSES: [stage.responses] * len(prompts),
        fields.MIX: [stage.mix(step)] * len(prompts),
        fields.WEIGHT: (sampler.loss_weights(prompts) * coef).tolist(),
        fields.TASK: [1.0] * len(prompts),
        fields.SELF: [False] * len(prompts),
        fields.SESSIONS: [n] * len(prompts),
        fields.GROUP_WEIGHTS: [None] * len(prompts),
        fields.TARGET: [None] * len(prompts),
    }
    if group_weights:
        weights = (weights_by_successes(sampler.kernel, n - 1, sampler.mean_weight) * coef).tolist()
        rows[fields.GROUP_WEIGHTS] = [weights] * len(prompts)
    if route is not None:
        _route(rows, sampler.table.rates()[prompts], route, coef)
    return rows


def _route(rows: dict[str, list[Any]], rates: npt.NDArray[np.float32], route: Route, coef: float) -> None:
    """Mastered prompts get neither loss, hopeless ones only self-distillation; unknown ones (NaN) get both."""
    for i, rate in enumerate(rates.tolist()):
        if rate >= route.mastered:
            rows[fields.WEIGHT][i], rows[fields.TASK][i] = 0.0, 0.0
        elif rate <= route.hopeless:
            rows[fields.WEIGHT][i], rows[fields.TASK][i], rows[fields.SELF][i] = coef, 0.0, True
