"""What rows are told when their prompts are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from paced_verl import fields
from paced_verl.config import RouteConfig
from paced_verl.instructions import row_instructions, weights_by_successes
from paced_verl.kernel import Kernel
from paced_verl.passrate import PassRateTable
from paced_verl.sampler import PassRateSampler
from paced_verl.schedule import Stage

SUCCESSES = np.array([0, 1, 2, 3, 4])


def stage(**changed: object) -> Stage:
    settings = {"index": 1, "first": 11, "last": 21, "divergence": "forward_kl", "responses": "student"} | changed
    return Stage(**settings)  # type: ignore[arg-type]


def sampler() -> PassRateSampler:
    table = PassRateTable(5)
    table.observe(np.arange(5), SUCCESSES, np.full(5, 4), step=0)
    return PassRateSampler(table, Kernel(), skip_zero_weight=False)


def test_weights_are_those_of_the_draw_times_the_coefficient_of_the_step() -> None:
    rows = row_instructions(np.arange(5), stage=stage(coef=(1.0, 0.2)), step=16, n=2, sampler=sampler())
    raw = (SUCCESSES / 4) * (1 - SUCCESSES / 4)
    assert rows[fields.WEIGHT] == pytest.approx((raw / raw.mean() * 0.6).tolist())
    assert rows[fields.STAGE] == [1] * 5
    assert rows[fields.SESSIONS] == [2] * 5
    assert rows[fields.TASK] == [1.0] * 5


@pytest.mark.parametrize(("step", "over", "mix"), [(11, 1.0, 0.0), (16, 1.0, 0.5), (21, 1.0, 1.0), (16, 0.5, 1.0)])
def test_an_interpolation_moves_linearly_over_its_share_of_the_stage(step: int, over: float, mix: float) -> None:
    turning = stage(towards="reverse_kl", over=over)
    rows = row_instructions(np.arange(2), stage=turning, step=step, n=2, sampler=sampler())
    assert rows[fields.MIX] == pytest.approx([mix] * 2)
    assert stage().mix(step) == 0


def test_a_group_weighs_what_its_own_pass_rate_says() -> None:
    rows = row_instructions(np.arange(2), stage=stage(), step=11, n=3, sampler=sampler(), group_weights=True)
    raw = (SUCCESSES / 4) * (1 - SUCCESSES / 4)
    expected = np.array([0, 2 / 9, 2 / 9, 0]) / raw.mean()
    assert rows[fields.GROUP_WEIGHTS][0] == pytest.approx(expected.tolist())
    assert weights_by_successes(Kernel(), 3, raw.mean()) == pytest.approx(expected)


def test_routing_by_pass_rate() -> None:
    route = RouteConfig(mastered=1.0, hopeless=0.25, context="answer")
    rows = row_instructions(np.arange(5), stage=stage(coef=(0.5, 0.5)), step=11, n=2, sampler=sampler(), route=route)
    assert rows[fields.SELF] == [True, True, False, False, False]
    assert rows[fields.TASK] == [0, 0, 1, 1, 0]
    assert rows[fields.WEIGHT][:2] == [0.5, 0.5]
    assert rows[fields.WEIGHT][4] == 0
    assert all(weight > 0 for weight in rows[fields.WEIGHT][2:4])


def test_a_prompt_that_nobody_has_tried_gets_both_losses() -> None:
    table = PassRateTable(3)
    table.observe([0], [2], [4], step=0)
    unknown = PassRateSampler(table, Kernel(), skip_zero_weight=False)
    rows = row_instructions(np.array([2]), stage=stage(), step=11, n=2, sampler=unknown, route=RouteConfig())
    assert rows[fields.TASK] == [1.0]
    assert rows[fields.SELF] == [False]
