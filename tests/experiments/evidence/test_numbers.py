"""Curves, differences and predictions against closed forms and other libraries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from scripts.experiments.evidence import contrasts, curves, predictions, stats
from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.cells import programme


def run(accuracy: list[float], **columns: Any) -> dict[str, Any]:
    """A run whose step costs 100 teacher tokens and a row of 50, its prompt's 9 among them: 250 at the price 1:1:3."""
    n = range(len(accuracy))
    row: dict[str, Any] = {"accuracy": accuracy, "step": list(n), "rows": list(n)}
    row |= {"teacher": [100 * i for i in n], "trained": [41 * i for i in n], "student": [0 for _ in n]}
    return row | {"estimate": [0 for _ in n], "second": [1.0 for _ in n]} | columns


def test_the_price_of_a_run_counts_its_estimates_before_anything_is_learnt() -> None:
    assert curves.cost(run([0, 1, 2]), "price 1:1:3").tolist() == [0, 250, 500]
    assert curves.cost(run([0, 1, 2]), "price 1:8:3").tolist() == [0, 950, 1900]
    paid = curves.curve(run([0.2, 0.6, 0.8], estimate=[500] * 3), "price 1:1:3")
    assert curves.value_at(*paid, 400) == curves.value_at(*paid, 500) == pytest.approx(0.2)
    assert curves.value_at(*paid, 625) == pytest.approx(0.4)
    assert math.isnan(curves.value_at(*paid, 1001))


def test_prompts_that_are_free_are_left_out_of_estimates_and_training() -> None:
    of = {"arm": "sampler", "regime": predictions.R0, "samples": None, "refresh": None, "stages": "forward"}
    of |= {"changes": ""}
    taken = 8 * 512
    paid = run([0, 1], estimate=[14 * taken] * 2, **of)
    assert curves.cost(paid, curves.PROMPTS_FREE).tolist() == [5 * taken, 5 * taken + 100 + 3 * 41]
    two = run([0, 1], estimate=[14 * taken / 4] * 2, **of | {"samples": 2})
    assert curves.cost(two, curves.PROMPTS_FREE)[0] == 5 * taken / 4
    assert curves.cost(run([0, 1], **of | {"arm": "uniform"}), curves.PROMPTS_FREE).tolist() == [0, 223]
    assert curves.cost(run([0, 1], **of | {"arm": "oracle"}), curves.PROMPTS_FREE).tolist() == [0, 223]
    for unknown in ({"refresh": "every"}, {"arm": "sampler, when drawn"}, {"stages": "two stages"}, {"changes": "x"}):
        with pytest.raises(ValueError, match="samples are not known"):
            curves.cost(run([0, 1], **of | unknown), curves.PROMPTS_FREE)


def test_the_same_curve_is_worth_less_where_estimates_were_paid_for_it() -> None:
    free, paid = run([0.0, 0.5, 1.0]), run([0.0, 0.5, 1.0], estimate=[250] * 3)
    one, other = curves.areas(paid, free, "step")
    assert one == other
    one, other = curves.areas(paid, free, "price 1:1:3")
    # From a price of 250 to one of 500: free rises from .5 to 1, paid from 0 to .5, all along a line.
    assert other - one == pytest.approx(0.5, abs=1e-3)


def test_where_a_curve_reaches_a_value() -> None:
    x, y = np.array([0.0, 100, 300]), np.array([0.2, 0.4, 0.8])
    assert [curves.cost_of(x, y, value) for value in (0.6, 0.1, 0.9)] == [pytest.approx(200), 0, math.inf]


def test_the_area_under_a_logarithm() -> None:
    x = np.geomspace(1, 16, 4001)
    assert curves.area(x, np.log2(x), 1, 16) == pytest.approx(2, abs=1e-3), "its mean over log x is that of 0 to 4"
    assert math.isnan(curves.area(x, np.log2(x), 1, 17))


def test_the_second_skill_at_equal_new_accuracy() -> None:
    assert curves.at_equal(run([0, 0.5, 1.0], second=[1.0, 0.8, 0.4]), 0.75) == pytest.approx(0.6)


def test_a_difference_is_the_paired_t_test() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    found = stats.difference(a, b)
    other = scipy_stats.ttest_rel(a, b)
    assert found.p == pytest.approx(other.pvalue)
    assert found.t_interval == pytest.approx(tuple(other.confidence_interval(0.95)))
    assert found.bca_interval[0] < found.mean < found.bca_interval[1]
    assert stats.difference([1, 2], [1, 2]).p == 1
    some = stats.difference([1, float("nan"), 3], [0, 0, 0])
    assert (some.gaps.shape, some.left_out, some.seeds) == ((2,), 1, 3)
    nothing = stats.difference([float("nan")], [0.0])
    assert (nothing.left_out, nothing.seeds, nothing.p) == (1, 1, 1)
    assert math.isnan(nothing.mean)
    assert all(map(math.isnan, (*nothing.t_interval, *nothing.bca_interval)))
    with pytest.raises(ValueError, match="no pair"):
        stats.difference([], [])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(40):
        low, high = stats.difference(rng.exponential(size=20), np.ones(20)).bca_interval
        hits += low <= 0 <= high
    assert hits >= 32, "binomial(40, .9) is below that in one of a hundred"


def around(mean: float, half: float) -> stats.Difference:
    """Twenty gaps whose 95 % interval is mean ± half."""
    reach = half * 19**0.5 / scipy_stats.t.ppf(0.975, 19)
    found = stats.Difference(mean + reach * np.tile([-1.0, 1.0], 10))
    assert found.t_interval == pytest.approx((mean - half, mean + half))
    return found


def test_holm_by_hand_and_what_is_not_worse() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    gap = around(0.0, 0.009)
    assert stats.non_inferior(gap)
    assert not stats.non_inferior(gap, margin=0.005)


def test_outcomes_are_by_the_interval() -> None:
    gap = around(0.08, 0.02)
    expected = {(0.05, 0.12): "as expected", (0.07, 0.12): "unclear, mean as expected", (-0.02, 0.0): "wrong, above"}
    expected |= {(0.2, 0.3): "wrong, below"}
    assert {interval: predictions.outcome(interval, gap) for interval in expected} == expected
    few = stats.Difference(gap.gaps, left_out=21)
    assert predictions.outcome((0.05, 0.12), few) == "not to be judged"


def test_what_follows_of_a_wrong_prediction_is_of_the_side_it_was_wrong_on() -> None:
    one = predictions.Prediction("a", "E1", "R", "x", "y", (0.0, 0.1), if_below="too little", if_above="too much")
    assert predictions.follows(one, predictions.outcome(one.expected, around(0.2, 0.02))) == "too much"
    assert predictions.follows(one, predictions.outcome(one.expected, around(-0.2, 0.02))) == "too little"
    assert predictions.follows(one, predictions.outcome(one.expected, around(0.05, 0.02))) == ""


def test_what_was_predicted_is_run() -> None:
    ran = contrasts.grouped([cell.columns() for cell in programme()])
    assert len({p.name for p in predictions.PREDICTIONS}) == len(predictions.PREDICTIONS)
    for p in predictions.PREDICTIONS:
        assert {p.arm, p.against} <= ARMS.keys()
        assert p.axis in curves.AXES
        assert p.expected[0] < p.expected[1]
        one, other = dict(p.where), dict(p.where) | dict(p.other)
        seeds = [
            {run["seed"] for run in contrasts.pick(ran, p.part, p.regime, arm, **where).values()}
            for arm, where in ((p.arm, one), (p.against, other))
        ]
        assert seeds[0] == seeds[1], p.name
        assert len(seeds[0]) >= 10, p.name
    for regime, arm in predictions.FAMILY:
        assert len(contrasts.pick(ran, "E1", regime, arm)) == 20
    assert len(predictions.FAMILY) == 24


def test_contrasts_are_by_seed() -> None:
    made = [
        run([0.0, 0.5 + 0.1 * (arm == "sampler") + seed / 100, 0.9], arm=arm, seed=seed)
        | contrasts.PLAIN
        | {"regime": "R", "experiment": "E1"}
        for arm, seeds in (("sampler", (3, 1, 2)), ("uniform", (1, 2, 4)))
        for seed in seeds
    ]
    runs = contrasts.grouped(made)
    both = contrasts.pairs(contrasts.pick(runs, "E1", "R", "sampler"), contrasts.pick(runs, "E1", "R", "uniform"))
    assert [(one["seed"], other["seed"]) for one, other in both] == [(1, 1), (2, 2)]
    assert contrasts.by_area(both, "step").mean > 0
    assert contrasts.by_final(both).mean == 0


def two(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[contrasts.Run, contrasts.Run]]:
    """The same pair twice, so that there is an interval."""
    named = {"regime": "R", "experiment": "E1", "seed": 1}
    return [(one | named | {"arm": "sampler"}, other | named | {"arm": "uniform"})] * 2


def test_runs_of_two_students_are_no_pair() -> None:
    ((one, other), _) = two(run([0.5, 0.6]), run([0.51, 0.6]))
    with pytest.raises(ValueError, match=r"R, seed 1: sampler of E1 begins at 0\.5000, uniform of E1 at 0\.5100"):
        contrasts.pairs({1: one}, {1: other})
    assert contrasts.matched({1: one}, {1: other}) == [(one, other)]


def test_at_equal_steps_areas_end_where_the_programme_does() -> None:
    """Two runs that go on, and differ only behind the planned steps."""
    on, off = [0.2, 0.4, 0.4, 0.9, 0.9], [0.2, 0.4, 0.4, 0.1, 0.1]
    assert contrasts.by_area(two(run(on, steps=2), run(off, steps=2)), "step").mean == 0
    assert contrasts.by_final(two(run(on, steps=2), run(off, steps=2))).mean == 0
    assert contrasts.by_area(two(run(on), run(off)), "step").mean > 0.1


def test_an_arm_whose_estimates_cost_more_than_the_other_runs_end_is_not_compared() -> None:
    dear, free = run([0.5, 0.9, 0.9], estimate=[600] * 3), run([0.5, 0.3, 0.2])
    for measure in (contrasts.by_final, contrasts.by_area):
        found = measure(two(dear, free), "price 1:1:3")
        assert (len(found.gaps), found.left_out) == (0, 2)
    assert contrasts.by_final(two(dear, free)).mean == pytest.approx(0.7), "at equal steps it is"
    less = run([0.5, 0.9, 0.9], estimate=[250] * 3)
    assert contrasts.by_final(two(less, free), "price 1:1:3").mean == pytest.approx(0.7), "its first step is paid for"


def test_what_is_begun_with_is_no_equal_new_accuracy() -> None:
    """The second run never gets above its start: nothing to compare at."""
    falls = run([0.8, 0.5, 0.6], second=[1.0, 0.2, 0.1])
    found = contrasts.by_second(two(run([0.8, 0.9, 1.0], second=[1.0, 0.9, 0.8]), falls))
    assert (len(found.gaps), found.left_out) == (0, 2)
    rises = run([0.8, 0.5, 0.9], second=[1.0, 0.2, 0.1])
    found = contrasts.by_second(two(run([0.8, 0.9, 1.0], second=[1.0, 0.9, 0.8]), rises))
    assert found.gaps == pytest.approx([0.8, 0.8])


def test_tokens_until_an_accuracy_are_counted_up_to_one_horizon() -> None:
    """Neither reaches it within the shorter run's tokens; the longer one does later, which is not looked at."""
    both = two(run([0.0, 0.1, 0.2]), run([0.0, 0.1, 0.1, 0.1, 0.9]))
    assert contrasts.by_tokens(both, 0.5).mean == 0
    assert contrasts.reached(both, 0.5) == (0, 0)
    both = two(run([0.0, 0.5, 0.5]), run([0.0, 0.1, 0.1, 0.1, 0.9]))
    assert contrasts.by_tokens(both, 0.5).mean == pytest.approx(0.5)
    assert contrasts.reached(both, 0.5) == (1, 0)


def test_a_gain_is_over_uniform_of_the_same_world() -> None:
    made = [
        run([0.1, end, end], arm=arm, seed=seed, regime="R", experiment="E2") | contrasts.PLAIN | {"changes": where}
        for where, uniform in (("a", 0.3), ("b", 0.5))
        for arm, end in (("uniform", uniform), ("sampler", 0.7))
        for seed in (1, 2)
    ]
    where, other = (("changes", "a"),), (("changes", "b"),)
    p = predictions.Prediction("x", "E2", "R", "sampler", "sampler", (0, 1), "gain", where=where, other=other)
    assert contrasts.of(p, contrasts.grouped(made)).gaps == pytest.approx([0.2, 0.2])
    assert contrasts.of(replace(p, share=0.5), contrasts.grouped(made)).gaps == pytest.approx([0.3, 0.3])


def test_a_gap_that_shrinks() -> None:
    both = two(run([0.5, 0.8, 0.6], steps=2), run([0.5, 0.5, 0.6], steps=2))
    assert contrasts._shrinking(both, 1).mean == pytest.approx(-0.3)


def test_at_one_price_no_arm_is_compared_with_a_shorter_uniform_run() -> None:
    """Uniform dips and recovers; a cheap arm that stands still would win at the end of its own curve."""
    uniform = run([0.6, 0.2, 0.4, 0.6, 0.8], steps=4)
    cheap = run([0.6, 0.6, 0.6, 0.6, 0.6], teacher=[0, 25, 50, 75, 100], trained=[0, 12, 25, 37, 50], steps=4)
    assert contrasts.by_final(two(cheap, uniform), "price 1:1:3").mean > 0.3
    assert contrasts.by_budget(two(cheap, uniform), "price 1:1:3").mean == pytest.approx(-0.2)
    dear = run([0.6, 0.7, 0.8, 0.9, 1.0], estimate=[500] * 5, steps=4)
    assert contrasts.by_budget(two(dear, uniform), "price 1:1:3").mean == pytest.approx(0.0), "two of its steps"
    too_dear = run([0.6, 0.7, 0.8, 0.9, 1.0], estimate=[900] * 5, steps=4)
    assert contrasts.by_budget(two(too_dear, uniform), "price 1:1:3").left_out == 2
