"""Priors a prompt, and the efficiency of weights, against closed forms, enumeration and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paced_verl.pacing.kernel import Kernel
from scripts.experiments.predicted.priors import EDGE, efficiency, fit_concentration, posterior_weights, predicted_rates


class Memory:
    """A regression that predicts a prompt, known by its one feature, by that prompt's own samples, others by ½."""

    def fit(self, features, label, sample_weight):
        self.known = {}
        for name in features[:, 0]:
            mine = features[:, 0] == name
            self.known[name] = (label * sample_weight)[mine].sum() / sample_weight[mine].sum()

    def predict_proba(self, features):
        rates = np.array([self.known.get(name, 0.5) for name in features[:, 0]])
        return np.stack([1 - rates, rates], 1)


class Share:
    """A regression without features, the share of successes, that takes no rows without weight."""

    def fit(self, features, label, sample_weight):
        assert np.all(sample_weight > 0)
        self.rate = (label * sample_weight).sum() / sample_weight.sum()

    def predict_proba(self, features):
        return np.full((len(features), 2), [1 - self.rate, self.rate])


def test_no_prompt_is_predicted_by_its_own_samples() -> None:
    names, rng = np.arange(40.0)[:, None], np.random.default_rng(0)
    k, n = np.where(np.arange(40) % 2, 4.0, 1.0), np.full(40, 4.0)
    np.testing.assert_array_equal(predicted_rates(Memory, names, k, n, rng), 0.5)


def test_prompts_without_samples_are_predicted_by_all_that_have_some_and_teach_nothing() -> None:
    k, n = np.array([3.0, 1, 2, 4, 0, 0, 0]), np.array([4.0, 4, 4, 4, 4, 0, 0])
    rates = predicted_rates(Share, np.zeros((7, 1)), k, n, np.random.default_rng(0))
    np.testing.assert_allclose(rates[5:], 10 / 20)


@pytest.mark.parametrize(("successes", "expected"), [(0.0, 0.5 / 33), (4.0, 32.5 / 33)])
def test_where_all_samples_are_alike_rates_stay_off_the_edge(successes: float, expected: float) -> None:
    k, n = np.full(9, successes), np.array([4.0] * 8 + [0.0])
    k[-1] = 0
    rates = predicted_rates(Share, np.zeros((9, 1)), k, n, np.random.default_rng(0))
    assert rates[-1] == pytest.approx(expected)
    assert np.all((rates >= EDGE) & (rates <= 1 - EDGE))


def test_concentration_is_the_likeliest_on_a_grid() -> None:
    rng = np.random.default_rng(1)
    rates = rng.uniform(0.1, 0.9, 4000)
    n = np.where(np.arange(4000) % 4, 8.0, 0.0)
    k = rng.binomial(n.astype(int), rng.beta(6 * rates, 6 * (1 - rates))).astype(float)
    grid = np.geomspace(0.5, 50, 400)
    asked = n > 0
    said = [stats.betabinom.logpmf(k[asked], 8, s * rates[asked], s * (1 - rates[asked])).sum() for s in grid]
    best = fit_concentration(rates, k, n)
    assert best == pytest.approx(grid[np.argmax(said)], rel=0.015)
    assert best == pytest.approx(6, rel=0.1)


def test_with_one_prior_for_all_weights_are_the_products() -> None:
    k, n = np.array([0.0, 1, 5, 0]), np.array([8.0, 8, 8, 0])
    expected = Kernel(estimate="posterior", prior=(0.7, 2.3))(k, n)
    np.testing.assert_allclose(posterior_weights(np.full(4, 0.7), np.full(4, 2.3), k, n), expected)


def test_efficiency_is_the_cosine_squared_and_free_of_the_truths_noise() -> None:
    rng = np.random.default_rng(2)
    rates = rng.beta(0.5, 1.5, 200_000)
    truth, guess = rates * (1 - rates), rng.uniform(size=200_000)
    cosine = (guess @ truth) ** 2 / ((guess @ guess) * (truth @ truth))
    noisy = tuple(rng.binomial(8, rates) / 8 for _ in range(2))
    assert efficiency(guess, noisy) == pytest.approx(cosine, rel=0.01)
    assert efficiency(3 * truth, noisy) == pytest.approx(1, rel=0.01)
    assert efficiency(0 * truth, noisy) == 0
