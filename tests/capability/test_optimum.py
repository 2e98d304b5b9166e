"""The best mix for known gains, against closed forms and search without gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from paced_verl.capability.optimum import Aim, best_mix, gain
from paced_verl.capability.reward import protected_capabilities, reward
from paced_verl.capability.simplex import hellinger, project
from paced_verl.errors import PacedError
from scripts.experiments.worlds.world import World, roots


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r, rates and room."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    return rng.dirichlet(np.full(size, 0.6)), rng.uniform(0.01, 0.2, size), rng.uniform(0.2, 1, size)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6), st.floats(0, 0.15))
def test_the_projection_is_the_nearest_mix(point: list[float], floor: float) -> None:
    values = np.array(point)
    mix = project(values, floor)
    assert mix.min() >= floor - 1e-12
    assert mix.sum() == pytest.approx(1)
    assert np.array_equal(project(mix, floor), mix) or np.allclose(project(mix, floor), mix, atol=1e-14)
    others = floor + (1 - floor * len(point)) * np.random.default_rng(0).dirichlet(np.ones(len(point)), 200)
    assert ((others - values) ** 2).sum(1).min() >= ((mix - values) ** 2).sum() - 1e-12


def test_floors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PacedError, match="floor=0"):
        project([0.2] * 5, 0.3)


@pytest.mark.parametrize("seed", range(20))
def test_the_kkt_optimum_of_a_concave_world(seed: int) -> None:
    """max Σ c_i √w_i has w_i ∝ c_i²."""
    r, rates, room = problem(seed)
    known = (r * rates * room) ** 2
    assert best_mix(np.diag(rates), room, Aim(r, r)) == pytest.approx(known / known.sum(), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_the_kkt_optimum_with_a_floor(seed: int) -> None:
    """w_i = max(floor, (c_i / 2μ)²) with μ such that they add up to 1."""
    r, rates, room = problem(seed)
    c = r * rates * room
    mu = brentq(lambda mu: np.maximum(0.04, (c / mu) ** 2).sum() - 1, 1e-6, 1e3)
    known = np.maximum(0.04, (c / mu) ** 2)
    assert best_mix(np.diag(rates), room, Aim(r, r, floor=0.04)) == pytest.approx(known, abs=1e-6)


def test_tokens_that_cost_more_are_bought_less() -> None:
    """max Σ c_i √w_i − λ Σ cost_i w_i has √w_i = c_i / (2 (μ + λ cost_i))."""
    c, cost = np.array([0.05, 0.04, 0.03]), np.array([1.0, 3.0, 2.0])
    mu = brentq(lambda mu: ((c / (2 * (mu + 0.01 * cost))) ** 2).sum() - 1, 0.001, 1)
    known = (c / (2 * (mu + 0.01 * cost))) ** 2
    r = np.full(3, 1 / 3)
    assert best_mix(np.diag(3 * c), np.ones(3), Aim(r, r, lam=0.01, cost=cost)) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize(("seed", "trust"), [(0, 0.01), (1, 0.05), (2, 0.2), (3, 0.5)])
def test_no_mix_within_the_trust_region_is_better(seed: int, trust: float) -> None:
    r, rates, room = problem(seed)
    rng = np.random.default_rng(seed)
    transfer = np.diag(rates) + rng.normal(0, 0.02, (len(r), len(r)))
    aim = Aim(r, r, horizon=5, trust=trust, beta=0.5, protected=protected_capabilities(r, 2))
    mix = best_mix(transfer, room, aim)
    assert hellinger(mix, r) <= trust + 1e-9
    others = np.concatenate([np.abs(r + rng.normal(0, s, (4000, len(r))) * r) for s in (0.1, 0.3, 1)])
    others /= others.sum(1, keepdims=True)
    inside = others[[hellinger(one, r) <= trust for one in others]]
    assert len(inside) > 100
    assert max(aim.value(transfer, room, one) for one in inside) <= aim.value(transfer, room, mix) + 1e-9


def test_a_horizon_is_that_many_decisions_of_the_world() -> None:
    r, start = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.2, 0.4])
    transfer = np.array([[0.1, 0.02, 0], [-0.01, 0.05, 0], [0, 0.03, 0.2]])
    world = World(r, start, roots(transfer), decisions=20)
    scores = start
    for _ in range(20):
        scores = world.step(scores, r)
    assert start + gain(transfer, 1 - start, r, 20) == pytest.approx(scores)
    mix = best_mix(transfer, 1 - start, Aim(r, r, horizon=20))
    searched, utility = world.best_fixed()
    assert world.utility(mix) >= utility - 1e-9
    assert mix == pytest.approx(searched, abs=0.01)


def test_larger_decisions_are_as_many_tokens_of_the_world() -> None:
    """√(4 w) = 2 √w: four times the tokens of T's at once move scores as a world of twice the rates does."""
    r, start = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.4])
    transfer = np.array([[0.05, 0.02, 0], [-0.01, 0.05, 0], [0, 0.03, 0.1]])
    world = World(r, start, roots(2 * transfer), decisions=5)
    aim = Aim(r, r, horizon=5, size=4)
    mix = best_mix(transfer, 1 - start, aim)
    assert mix == pytest.approx(world.best_fixed()[0], abs=0.01)
    assert aim.value(transfer, 1 - start, mix) == pytest.approx(world.utility(mix) - r @ start)


def spillover(beta: float) -> np.ndarray:
    """Training the second capability costs the first: T = [[a, −d], [0, b]]. What the first becomes."""
    r, transfer = np.array([0.3, 0.7]), np.array([[0.1, -0.1], [0.0, 0.2]])
    mix = best_mix(transfer, np.full(2, 0.5), Aim(r, r, beta=beta, protected=np.array([True, False])))
    return transfer @ np.sqrt(mix)


def test_protection_begins_to_hold_at_the_beta_of_the_closed_form() -> None:
    """The first loses as long as 1 + β < r₂ b d / (r₁ (a² + d²)); from there on it is kept exactly."""
    switch = 0.7 * 0.2 * 0.1 / (0.3 * (0.1**2 + 0.1**2)) - 1
    assert switch == pytest.approx(4 / 3)
    assert spillover(0.0)[0] < spillover(switch - 0.5)[0] < spillover(switch - 0.01)[0] < -1e-5
    for beta in (switch + 0.01, switch + 1, 50.0):
        assert spillover(beta)[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("away", "chosen"), [(-1e-6, 1), (1e-6, 0)])
def test_the_best_of_two_candidates_changes_at_the_beta_of_the_closed_form(away: float, chosen: int) -> None:
    """r₂ b − r₁ d (1 + β) = r₁ a."""
    r, delta = np.array([0.3, 0.7]), np.array([[0.1, 0.0], [-0.1, 0.2]])
    switch = (0.7 * 0.2 - 0.3 * 0.1) / (0.3 * 0.1) - 1
    assert np.argmax(reward(r, delta, switch + away, np.array([True, False]))) == chosen


def test_where_everything_hurts_it_is_not_worse_than_the_static_mix() -> None:
    r = np.array([0.6, 0.4])
    for transfer in (np.full((2, 2), -0.1), np.array([[-0.1, -0.3], [0.0, -0.2]])):
        aim = Aim(r, r)
        assert aim.value(transfer, np.full(2, 0.5), best_mix(transfer, np.full(2, 0.5), aim)) >= aim.value(
            transfer, np.full(2, 0.5), r
        )


def test_the_static_mix_where_nothing_matters() -> None:
    r = np.array([0.6, 0.4])
    assert best_mix(np.zeros((2, 2)), np.ones(2), Aim(r, r)) == pytest.approx(r)


def test_protected_are_the_most_required_and_their_equals() -> None:
    assert protected_capabilities(np.array([0.4, 0.3, 0.3, 0.0]), 2).tolist() == [True, True, True, False]
    assert protected_capabilities(np.array([1.0, 0.0]), 2).tolist() == [True, False]


def test_cost_is_a_share_so_that_it_does_not_swamp_gains() -> None:
    assert reward(np.array([1.0]), np.array([0.02]), lam=0.1, cost_share=0.05) == pytest.approx(0.015)
