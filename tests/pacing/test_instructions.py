"""What rows are told when their prompts are drawn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from paced_verl import fields
from paced_verl.pacing.instructions import Route, row_instructions
from paced_verl.pacing.kernel import Kernel, weights_by_successes
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.pacing.schedule import Stage
from paced_verl.run.group import Group, Scored

SUCCESSES = np.array([0, 1, 2, 3, 4])


def stage(**changed: object) -> Stage:
    settings = {"index": 1, "first": 11, "last": 21, "divergence": "forward_kl", "responses": "student"} | changed
    return Stage(**settings)  # type: ignore[arg-type]


def sampler() -> PassRateSampler:
    table = PassRateTable(5)
    table.observe(np.arange(5), SUCCESSES, np.full(5, 4), step=0)
    return PassRateSampler(table, Kernel(), skip_zero_weight=False)


def told(known: PassRateSampler, prompts: npt.ArrayLike, *, group: bool = False, **told: Any) -> dict[str, list[Any]]:
    """The instructions of these prompts, from what a sampler knows about them."""
    which = np.asarray(prompts)
    weights = weights_by_successes(known.kernel, told["n"] - 1, known.mean_weight) if group else None
    return row_instructions(
        known.loss_weights(which), group_weights=weights, rates=known.table.rates(which), **{"stage": stage()} | told
    )


def test_weights_are_those_of_the_draw_times_the_coefficient_of_the_step() -> None:
    rows = told(sampler(), np.arange(5), stage=stage(coef=(1.0, 0.2)), step=16, n=2)
    raw = (SUCCESSES / 4) * (1 - SUCCESSES / 4)
    assert rows[fields.WEIGHT] == pytest.approx((raw / raw.mean() * 0.6).tolist())
    assert rows[fields.STAGE] == [1] * 5
    assert rows[fields.SESSIONS] == [2] * 5
    assert rows[fields.TASK] == [1.0] * 5


@pytest.mark.parametrize(("step", "over", "mix"), [(11, 1.0, 0.0), (16, 1.0, 0.5), (21, 1.0, 1.0), (16, 0.5, 1.0)])
def test_an_interpolation_moves_linearly_over_its_share_of_the_stage(step: int, over: float, mix: float) -> None:
    turning = stage(towards="reverse_kl", over=over)
    rows = told(sampler(), [0, 1], stage=turning, step=step, n=2)
    assert rows[fields.MIX] == pytest.approx([mix] * 2)
    assert stage().mix(step) == 0


def test_a_response_weighs_what_the_others_of_its_group_say() -> None:
    rows = told(sampler(), [0, 1], stage=stage(coef=(0.5, 0.5)), step=11, n=4, group=True)
    raw = (SUCCESSES / 4) * (1 - SUCCESSES / 4)
    expected = 0.5 * np.array([0, 2 / 9, 2 / 9, 0]) / raw.mean()  # 0 … 3 of the other 3
    assert rows[fields.GROUP_WEIGHTS] == [pytest.approx(expected.tolist())] * 2


def drawn_weights(n: int, table: PassRateTable, outcomes: tuple[bool, ...]) -> list[float]:
    """The weight of each response of a group with these outcomes, as a worker reads it off its instructions."""
    known = PassRateSampler(table, Kernel(), skip_zero_weight=False)
    rows = told(known, [0], step=11, n=n, group=True)
    group = Group(n)
    for session, correct in enumerate(outcomes):
        group.settle(session, Scored(correct=correct, text=""))
    return [rows[fields.GROUP_WEIGHTS][0][group.successes_beside(session)] for session in range(n)]


@pytest.mark.parametrize("n", [3, 4, 8])
@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.8])
def test_correct_and_wrong_responses_weigh_the_same_on_average(n: int, p: float) -> None:
    """All 2^n groups: E[w̃ | correct] = E[w̃ | wrong] = (1 − 1/(n−1)) p (1−p) / mean. What is left is one factor."""
    table = PassRateTable(5)
    table.observe(np.arange(5), SUCCESSES, np.full(5, 4), step=0)
    mean = np.mean((SUCCESSES / 4) * (1 - SUCCESSES / 4))
    total, chance = np.zeros(2), np.zeros(2)
    for outcomes in itertools.product([False, True], repeat=n):
        probability = p ** sum(outcomes) * (1 - p) ** (n - sum(outcomes))
        for correct, weight in zip(outcomes, drawn_weights(n, table, outcomes), strict=True):
            total[int(correct)] += probability * weight
            chance[int(correct)] += probability
    assert total / chance == pytest.approx([(1 - 1 / (n - 1)) * p * (1 - p) / mean] * 2)


def test_the_first_step_has_the_scale_of_later_ones_though_nothing_is_known() -> None:
    """Groups of 8, uniform pass rates: the mean weight of a batch, with an empty table and with one that knows them."""
    rng, prompts = np.random.default_rng(0), 2000
    rates = rng.random(prompts)
    outcomes = rng.random((prompts, 8)) < rates[:, None]
    empty, known = PassRateTable(prompts), PassRateTable(prompts)
    known.observe(np.arange(prompts), outcomes.sum(1), np.full(prompts, 8), step=0)
    first, later = (
        np.mean([drawn_weights(8, table, tuple(row)) for row in outcomes.tolist()[:1000]]) for table in (empty, known)
    )
    assert first == pytest.approx(1, abs=0.05)
    assert later == pytest.approx(1, abs=0.05)


def test_routing_by_pass_rate() -> None:
    route = Route(mastered=1.0, hopeless=0.25)
    rows = told(sampler(), np.arange(5), stage=stage(coef=(0.5, 0.5)), step=11, n=2, route=route)
    assert rows[fields.SELF] == [True, True, False, False, False]
    assert rows[fields.TASK] == [0, 0, 1, 1, 0]
    assert rows[fields.WEIGHT][:2] == [0.5, 0.5]
    assert rows[fields.WEIGHT][4] == 0
    assert all(weight > 0 for weight in rows[fields.WEIGHT][2:4])


def test_a_prompt_that_nobody_has_tried_gets_both_losses() -> None:
    table = PassRateTable(3)
    table.observe([0], [2], [4], step=0)
    unknown = PassRateSampler(table, Kernel(), skip_zero_weight=False)
    rows = told(unknown, [2], step=11, n=2, route=Route(1.0, 0.0))
    assert rows[fields.TASK] == [1.0]
    assert rows[fields.SELF] == [False]
