"""The filters against Bayesian regression on all measurements at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from paced_verl.capability.gains import Gains, Prior
from paced_verl.capability.optimum import Aim

SIZE, DECISIONS = 3, 7


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (n, C), scores (n + 1, C), errors (n + 1, C)."""
    rng = np.random.default_rng(seed)
    tokens = rng.dirichlet(np.ones(SIZE), DECISIONS) * rng.uniform(500, 1500, (DECISIONS, 1))
    return (
        tokens,
        np.sort(rng.uniform(0.2, 0.6, (DECISIONS + 1, SIZE)), 0),
        rng.uniform(0.01, 0.04, (DECISIONS + 1, SIZE)),
    )


def filtered(prior: Prior, seed: int = 0) -> tuple[Gains, list[np.ndarray]]:
    """The model after all data, and the h that it has used, (C,) a decision."""
    tokens, scores, se = data(seed)
    model = Gains(SIZE, 1000, prior)
    model.start(scores[0], se[0])
    rooms = []
    for t in range(DECISIONS):
        rooms.append(1 - model.mean[0, :, 0])
        model.update(tokens[t], scores[t + 1], se[t + 1])
    return model, rooms


def batch(prior: Prior, rooms: list[np.ndarray], i: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of (s, T_i) after all data by one dense regression, and the data's log-likelihood.

    Unknown are s_0, the T_i of every decision and every ε: (s_0, T⁰, η¹ … ηⁿ, ε¹ … εⁿ), all independent.
    """
    tokens, scores, se = data()
    f, n = prior.forget, DECISIONS
    centre = np.where(np.arange(SIZE) == i, prior.rate, 0.0)
    spread = np.where(np.arange(SIZE) == i, prior.rate_sd, prior.spill_sd) ** 2
    size = 1 + SIZE + n * SIZE + n
    variance = np.concatenate([[se[0, i] ** 2], spread, np.tile((1 - f) * spread, n), np.zeros(n)])
    mean = np.concatenate([[scores[0, i]], np.zeros(size - 1)])
    rows = np.zeros((n, size))
    state, known, deviation = np.zeros(size), 0.0, np.zeros((SIZE, size))
    state[0] = 1
    deviation[:, 1 : 1 + SIZE] = np.eye(SIZE)
    for t in range(n):
        deviation = np.sqrt(f) * deviation
        deviation[:, 1 + SIZE * (1 + t) : 1 + SIZE * (2 + t)] += np.eye(SIZE)
        push = rooms[t][i] * np.sqrt(tokens[t] / 1000)
        state = state + push @ deviation
        state[1 + SIZE * (1 + n) + t] += 1
        variance[1 + SIZE * (1 + n) + t] = (prior.misfit * prior.rate * rooms[t][i]) ** 2
        known += push @ centre
        rows[t] = state
        scores[t + 1, i] -= known
    prior_cov = np.diag(variance)
    noise = rows @ prior_cov @ rows.T + np.diag(se[1:, i] ** 2)
    weight = prior_cov @ rows.T @ np.linalg.inv(noise)
    post = mean + weight @ (scores[1:, i] - rows @ mean)
    cov = prior_cov - weight @ rows @ prior_cov
    wanted = np.concatenate([state[None], deviation])
    likelihood = multivariate_normal.logpdf(scores[1:, i], rows @ mean, noise)
    return wanted @ post + np.concatenate([[known], centre]), wanted @ cov @ wanted.T, float(likelihood)


@pytest.mark.parametrize(("forget", "misfit"), [(1.0, 0.0), (1.0, 0.3), (0.8, 0.3)])
def test_the_filter_is_the_regression_on_everything(forget: float, misfit: float) -> None:
    prior = Prior(forget=forget, misfit=misfit, scales=(1.0,))
    model, rooms = filtered(prior)
    likelihood = 0.0
    for i in range(SIZE):
        mean, cov, mine = batch(prior, rooms, i)
        assert model.mean[0, i] == pytest.approx(mean, abs=1e-9)
        assert model.cov[0, i] == pytest.approx(cov, abs=1e-9)
        likelihood += mine
    assert model.evidence[0] == pytest.approx(likelihood, abs=1e-9)


def differences(noise: np.ndarray) -> np.ndarray:
    """Covariance of T_0 by regression on consecutive differences with a given covariance of their noise."""
    _, rooms = filtered(Prior(forget=1, misfit=0, scales=(1.0,)))
    tokens, _, _ = data()
    x = np.array([room[0] for room in rooms])[:, None] * np.sqrt(tokens / 1000)
    prior = np.diag(np.array([0.1, 0.02, 0.02]) ** -2.0)
    return np.linalg.inv(prior + x.T @ np.linalg.solve(noise, x))


def test_differences_of_probes_correlate_by_a_half() -> None:
    """The same posterior from Δs alone, if their tridiagonal covariance is used."""
    model, _ = filtered(Prior(forget=1, misfit=0, scales=(1.0,)))
    variance = data()[2][:, 0] ** 2
    noise = np.diag(variance[1:] + variance[:-1]) - np.diag(variance[1:-1], 1) - np.diag(variance[1:-1], -1)
    assert model.cov[0, 0, 1:, 1:] == pytest.approx(differences(noise), abs=1e-9)
    assert noise[0, 1] / np.sqrt(noise[0, 0] * noise[1, 1]) == pytest.approx(-0.5, abs=0.35)


def test_independent_differences_would_misstate_what_is_known_by_the_known_factor() -> None:
    """The same mix n times with equal probes: the sum of all gains is known to 2 se², not to the 2 n se² of n
    independent differences. Ignoring the shared noise understates what is known of the mean gain n times."""
    n, se = 8, 0.02
    model = Gains(1, 1000, Prior(rate_sd=1e3, forget=1, misfit=0, scales=(1.0,)))
    model.start(np.zeros(1), np.full(1, se))
    for _ in range(n):
        model.mean[..., 0] = 0.0  # h = 1 throughout
        model.update(np.array([1000.0]), np.zeros(1), np.full(1, se))
    t = np.arange(n + 1)
    slope = se**2 / np.sum((t - t.mean()) ** 2)  # of the straight line through n + 1 equally good measurements
    assert model.cov[0, 0, 1, 1] == pytest.approx(slope, rel=1e-6)
    independent = 2 * se**2 / n
    assert independent / model.cov[0, 0, 1, 1] == pytest.approx((n + 1) * (n + 2) / 6, rel=1e-6)


def test_what_was_forgotten_is_the_prior_again() -> None:
    prior = Prior(forget=0.5, scales=(1.0,))
    model = Gains(1, 1000, prior)
    model.start(np.array([0.2]), np.array([0.001]))
    model.update(np.array([1000.0]), np.array([0.5]), np.array([0.001]))
    assert model.transfer[0, 0] == pytest.approx(0.3 / 0.8, abs=0.03)
    for _ in range(60):
        model.update(np.zeros(1), np.array([0.5]), np.array([0.001]))
    assert model.transfer[0, 0] == pytest.approx(prior.rate, abs=1e-6)
    assert model.cov[0, 0, 1, 1] == pytest.approx(prior.rate_sd**2, rel=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.4])
def test_the_scale_of_the_gains_need_not_be_known(rate: float) -> None:
    rng = np.random.default_rng(0)
    model, s = Gains(3, 1000), np.full(3, 0.1)
    model.start(s, np.full(3, 1e-3))
    for _ in range(12):
        mix = rng.dirichlet(np.ones(3))
        s = s + (1 - s) * rate * np.sqrt(mix)
        model.update(1000 * mix, s, np.full(3, 1e-3))
    assert np.diag(model.transfer) == pytest.approx(np.full(3, rate), rel=0.15)


def test_predictions_are_those_of_the_posterior() -> None:
    model, _ = filtered(Prior(scales=(1.0,)))
    mixes = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    mean, sd = model.predict(mixes, count=20_000)
    roots = np.sqrt(mixes)
    assert mean == pytest.approx(model.room * (roots @ model.transfer.T), abs=2e-3)
    known = np.sqrt(np.einsum("aj,ijk,ak->ai", roots, model.cov[0, :, 1:, 1:], roots)) * model.room
    assert sd == pytest.approx(known, rel=0.05)


def test_it_stays_static_until_something_is_known() -> None:
    model = Gains(3, 1000)
    model.start(np.array([0.2, 0.3, 0.4]), np.full(3, 0.05))
    r = np.array([0.5, 0.3, 0.2])
    mix, advantage = model.cautious(Aim(r, r, horizon=10), 0.75)
    assert mix == pytest.approx(r)
    assert not advantage.any()


def test_scores_come_first() -> None:
    with pytest.raises(RuntimeError, match="start"):
        Gains(2, 1000).transfer  # noqa: B018
