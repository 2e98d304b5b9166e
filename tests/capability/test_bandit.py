"""The ensemble and its candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.capability.actions import actions
from paced_verl.capability.bandit import Ensemble, bootstrap_weights, calibration, upper_bound


def data(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (count, 4))
    return x, x @ [1.0, -1.0, 0.5, 0.0] * 0.01


def test_bootstrap_weights_stay_with_their_observations() -> None:
    assert np.array_equal(bootstrap_weights(3, 5, 20)[:, :7], bootstrap_weights(3, 5, 7))
    many = bootstrap_weights(0, 5, 20_000)
    assert many.mean(axis=1) == pytest.approx(np.ones(5), abs=0.03)
    assert np.abs(np.corrcoef(many) - np.eye(5)).max() < 0.03


def test_it_is_trained_from_scratch() -> None:
    x, y = data()
    twice, once = Ensemble(steps=50, seed=1), Ensemble(steps=50, seed=1)
    twice.fit(x[:6], 5 * y[:6])
    twice.fit(x, y)
    once.fit(x, y)
    assert np.array_equal(twice.predict(x)[0], once.predict(x)[0])
    other = Ensemble(steps=50, seed=2)
    other.fit(x, y)
    assert not np.array_equal(other.predict(x)[0], once.predict(x)[0])


def test_units_do_not_matter() -> None:
    x, y = data()
    one, scaled = Ensemble(steps=50), Ensemble(steps=50)
    one.fit(x, y)
    scaled.fit(x * [1, 1e6, 1e-6, 1] + 3, 1000 * y - 7)
    for a, b, shift in zip(one.predict(x), scaled.predict(x * [1, 1e6, 1e-6, 1] + 3), (7, 0), strict=True):
        assert 1000 * a == pytest.approx(b + shift, rel=1e-5)


def test_it_learns_and_says_how_far_its_nets_agree() -> None:
    x, y = data(60)
    ensemble = Ensemble(steps=400, rate=5e-3)
    ensemble.fit(x, y)
    mean, sd = ensemble.predict(x)
    assert np.corrcoef(mean, y)[0, 1] > 0.95
    assert ensemble.predict(x + 3)[1].mean() > 2 * sd.mean()


def test_without_kappa_it_is_greedy() -> None:
    assert upper_bound(np.array([1.0, 3.0, 2.0]), np.array([9.0, 0.0, 9.0]), 0) == 1
    assert upper_bound(np.array([1.0, 3.0, 2.0]), np.array([9.0, 0.0, 9.0]), 1) == 2


@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_regret_is_at_most_twice_the_bound_where_the_bound_holds(seed: int, kappa: float) -> None:
    rng = np.random.default_rng(seed)
    truth, sd = rng.normal(size=20), rng.exponential(size=20)
    mean = truth + rng.uniform(-1, 1, 20) * kappa * sd
    chosen = upper_bound(mean, sd, kappa)
    assert truth.max() - truth[chosen] <= 2 * kappa * sd[chosen] + 1e-12


def test_candidates_are_mixes_each_once() -> None:
    r = np.array([0.5, 0.3, 0.15, 0.05])
    found = actions(np.array([0.05, 0.95, 0.0, 0.0]), r)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))
    assert found.min() >= 0
    assert len(np.unique(found, axis=0)) == len(found)
    assert len(actions(None, r)) == 3 + 3 * 3
    assert [0.0, 1.0, 0.0, 0.0] in found.tolist()
    assert len(found) == 3 + 3 * 3 + 1 + 2 * 3 - 1  # a change to (0, 1, 0, 0) is there already


def test_what_is_not_required_fills_no_place() -> None:
    assert actions(None, np.array([0.0, 1.0, 0.0])).tolist() == [[0.0, 1.0, 0.0]]


def test_calibration_is_a_slope_and_needs_two_points() -> None:
    assert calibration(np.array([0.1, 0.2, 0.4]), np.array([5.2, 5.4, 5.8])) == pytest.approx(2)
    assert np.isnan(calibration(np.array([0.1]), np.array([5.0])))
