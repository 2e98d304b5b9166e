"""Areas, prices and contrasts against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scripts.experiments.evidence.compare import (
    Contrast,
    advantage,
    area,
    contrast,
    contrasts,
    holm,
    pairs,
    spent,
)


def run(arm: str = "a", seed: int = 0, accuracy=(0.0, 0.5, 1.0), estimate: float = 0.0, **columns):
    steps = [0, 1, math.e**2]
    sums = {"student": [0, 10, 20], "teacher": [0, 5, 10], "trained": [0, 1, 2], "rows": [0, 1, 2]}
    return (
        {"arm": arm, "seed": seed, "step": steps, "accuracy": list(accuracy), "estimate": [estimate] * 3}
        | sums
        | columns
    )


def test_the_area_of_a_line_in_the_logarithm_is_the_mean_of_its_ends() -> None:
    assert area(run(), "step", 1.0, math.e**2) == pytest.approx(0.75, abs=1e-6)
    assert area(run(), "step", 1.0, math.e) == pytest.approx(0.625, abs=1e-6)


def test_a_price_counts_estimates_and_what_each_token_costs() -> None:
    row = run(estimate=7.0)
    assert spent(row, "price 1:1:3").tolist() == [7, 17 + 5 + 3, 27 + 10 + 6]
    assert spent(row, "price 1:8:3").tolist() == [7, 17 + 40 + 3, 27 + 80 + 6]
    assert spent(row, "rows").tolist() == [0, 1, 2]


def test_the_same_curve_is_worth_less_if_estimates_were_paid_for_it() -> None:
    free, paid = run(), run(estimate=20.0)
    assert advantage(paid, free, "step") == 0
    assert advantage(paid, free, "price 1:1:3") < -0.01
    assert advantage(free, paid, "price 1:1:3") == pytest.approx(-advantage(paid, free, "price 1:1:3"))


def test_pairs_are_by_seed() -> None:
    rows = [run("a", 1), run("b", 0), run("a", 0), run("a", 2)]
    assert [(a["seed"], b["seed"]) for a, b in pairs(rows, "a", "b")] == [(0, 0)]


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_intervals_hold_the_truth_as_often_as_they_say(shift: float) -> None:
    rng = np.random.default_rng(1)
    found = [contrast(rng.normal(shift, 0.04, 20)) for _ in range(60)]
    held = sum(low <= shift <= high for low, high in (each.interval for each in found))
    assert held >= 51, "binomial(60, .92) is below that in one of a hundred"
    assert sum(each.p < 0.05 for each in found) <= 8 if shift == 0 else sum(each.p < 0.05 for each in found) >= 55


def test_too_few_seeds_have_a_mean_and_no_interval() -> None:
    found = contrast([0.1, float("nan"), 0.3])
    assert (found.seeds, found.mean) == (2, pytest.approx(0.2))
    assert math.isnan(found.p)
    assert math.isnan(contrast([]).mean)


def test_holm_by_hand() -> None:
    made = {
        name: Contrast(20, 0.0, (0.0, 0.0), p) for name, p in zip("abcd", (0.01, 0.04, 0.03, float("nan")), strict=True)
    }
    corrected = holm(made)
    assert [corrected[name] for name in "abc"] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(corrected["d"])


def test_every_arm_is_set_beside_the_other() -> None:
    rows = [
        run(arm, seed, (0.0, 0.5 + seed / 100, 1.0 - (arm == "u") * 0.1 * seed))
        for arm in ("u", "x")
        for seed in range(4)
    ]
    found = contrasts(rows, "u", "step")
    assert list(found) == ["x"]
    assert found["x"].seeds == 4
    assert found["x"].mean > 0
