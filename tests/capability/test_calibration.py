"""Accuracy by the log-likelihood of correct responses: what was planted, and errors that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logsumexp

from paced_verl.capability.calibration import COMMON_SD, OWN_SD, Calibration, Misfit, estimate, pooled


def planted(
    rng: np.random.Generator, probes: int, moments: int, slope: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ℓ and true pass rates (moments, P), P = 3 capabilities × probes; capability, and samples of each."""
    groups = np.repeat(np.arange(3), probes)
    level = np.array([-3.0, -1.0, -0.5])[groups] + rng.normal(0, 0.5, len(groups))
    values = level + np.linspace(0, 0.6, moments)[:, None]
    return values, expit(np.array([1.0, 2.0, 0.5])[groups] + slope * values), groups, np.full(len(groups), 2)


def test_the_mode_and_its_curvature_are_those_of_the_posterior() -> None:
    """One capability, so few responses that the prior is felt: by enumeration over a grid of all coefficients' sums."""
    values, groups = np.array([-2.0, -1.0, 0.0, 1.0]), np.zeros(4, int)
    successes, samples = np.array([0, 1, 3, 4]), np.full(4, 4)
    found = Calibration.fit(values, groups, successes, samples, 1)
    z = (values - values.mean()) / values.std()

    def log_posterior(w: np.ndarray) -> float:
        logits = w[0] + w[2] + (w[1] + w[3]) * z
        prior = -(w[0] ** 2 + w[1] ** 2) / (2 * COMMON_SD**2) - (w[2] ** 2 + w[3] ** 2) / (2 * OWN_SD**2)
        return float(np.sum(successes * logits - samples * np.logaddexp(0, logits)) + prior)

    best, step = log_posterior(found.mean), 1e-3
    basis = np.eye(4)
    for direction in basis:
        assert log_posterior(found.mean + step * direction) < best
        assert log_posterior(found.mean - step * direction) < best
    curvature = np.array(
        [
            [
                log_posterior(found.mean + step * (one + two))
                - log_posterior(found.mean + step * (one - two))
                - log_posterior(found.mean - step * (one - two))
                + log_posterior(found.mean - step * (one + two))
                for one in basis
            ]
            for two in basis
        ]
    ) / (4 * step**2)
    assert -curvature @ found.cov == pytest.approx(np.eye(4), abs=1e-3)
    # With one capability only the sums a + α and b + β act, each of variance COMMON_SD² + OWN_SD² beforehand.
    grid = np.stack(np.meshgrid(np.linspace(-12, 12, 481), np.linspace(-12, 12, 481), indexing="ij"), -1).reshape(-1, 2)
    logits = grid[:, :1] + grid[:, 1:] * z
    density = np.sum(successes * logits - samples * np.logaddexp(0, logits), 1)
    density -= np.sum(grid**2, 1) / (2 * (COMMON_SD**2 + OWN_SD**2))
    mean = np.exp(density - logsumexp(density)) @ expit(grid[:, 0] + grid[:, 1] * z[2])
    rate, _ = found.rates(values[2:3], groups[2:3])
    assert rate[0] == pytest.approx(mean, abs=0.05)


def test_what_was_planted_is_found_for_a_moment_that_was_not_sampled() -> None:
    rng = np.random.default_rng(0)
    values, rates, groups, samples = planted(rng, 400, 4)
    seen = rng.binomial(2, rates[:3])
    found = Calibration.fit(values[:3].ravel(), np.tile(groups, 3), seen.ravel(), np.tile(samples, 3), 3)
    guess = estimate(found, values[3], groups, seen[2], samples)
    truth = np.array([rates[3][groups == c].mean() for c in range(3)])
    assert guess.mean == pytest.approx(truth, abs=0.02)
    assert guess.rates == pytest.approx(rates[3], abs=0.1)
    sampled = np.sqrt([np.mean(rates[3][groups == c] * (1 - rates[3][groups == c])) / 800 for c in range(3)])
    assert (guess.se < 0.9 * sampled).all(), "reading says more than 800 responses a capability would"


def test_errors_hold_as_often_as_they_say() -> None:
    inside = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        values, rates, groups, samples = planted(rng, 30, 4)
        seen = rng.binomial(2, rates[:3])
        found = Calibration.fit(values[:3].ravel(), np.tile(groups, 3), seen.ravel(), np.tile(samples, 3), 3)
        guess = estimate(found, values[3], groups, seen[2], samples)
        truth = np.array([rates[3][groups == c].mean() for c in range(3)])
        inside.append(np.abs(guess.mean - truth) < 1.96 * guess.se)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_a_capability_that_has_never_moved_borrows_the_slope_of_the_others() -> None:
    rng = np.random.default_rng(1)
    values, rates, groups, samples = planted(rng, 200, 3)
    rates[:, groups == 0] = 0.0  # out of reach: no slope could be fitted to it alone
    seen = rng.binomial(2, rates)
    found = Calibration.fit(values.ravel(), np.tile(groups, 3), seen.ravel(), np.tile(samples, 3), 3)
    assert np.isfinite(found.mean).all()
    now = estimate(found, values[2], groups, seen[2], samples)
    assert now.mean[0] < 0.01
    nearer = estimate(found, values[2] + 2, groups, seen[2], samples)
    assert nearer.mean[0] > 3 * now.mean[0]


def test_a_probe_without_a_response_keeps_what_its_samples_said() -> None:
    found = Calibration(1, 0.0, 1.0, np.zeros(4), np.zeros((4, 4)))
    values, groups = np.array([0.0, np.nan, np.nan]), np.zeros(3, int)
    guess = estimate(found, values, groups, np.array([0, 3, 0]), np.array([4, 4, 0]))
    assert guess.rates == pytest.approx([0.5, 0.75, 0.5])
    assert guess.mean == pytest.approx([1.75 / 3])
    p = np.array([4 / 6, 1 / 2])
    assert guess.se == pytest.approx([np.sqrt(np.sum(p * (1 - p) / np.array([4, 1]))) / 3])
    nothing = estimate(found, np.full(3, np.nan), groups, np.array([1, 3, 0]), np.full(3, 4))
    assert nothing.mean == pytest.approx([1 / 3])


def test_two_measurements_are_as_good_as_one_with_both_precisions() -> None:
    mean, se = pooled(np.array([0.2]), np.array([0.1]), np.array([0.8]), np.array([0.2]))
    assert mean == pytest.approx([(0.2 * 100 + 0.8 * 25) / 125])
    assert se == pytest.approx([125**-0.5])


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_misfit_is_what_noise_does_not_explain(wrong: float) -> None:
    rng, misfit = np.random.default_rng(2), Misfit()
    assert misfit.variance == 0
    for _ in range(2000):
        off = rng.normal(0, wrong, 3) + rng.normal(0, 0.05, 3) + rng.normal(0, 0.03, 3)
        misfit.add(off, np.full(3, 0.05), np.full(3, 0.03))
    assert misfit.variance == pytest.approx(wrong**2, abs=5e-4)
