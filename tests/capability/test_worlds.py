"""Policies in simulated worlds, against the static mix and the best fixed one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from paced_verl.capability.gains import Prior
from paced_verl.statistics import estimate
from scripts.experiments.worlds.study import ALIKE, CEILINGS, HURTS, ORDERED, SATURATED, R
from scripts.experiments.worlds.world import World, constant, roots, run


def gained(world: World, seeds: int, name: str = "gains", **settings: object) -> np.ndarray:
    """Utility beyond the static mix's, (seeds,)."""
    static = float(world.utility(world.r))
    return np.array([run(world, name, seed, **settings).utility for seed in range(seeds)]) - static


def test_no_loss_where_the_static_mix_is_the_best() -> None:
    """Not worse by .01, one-sided at 2.5 %."""
    assert estimate(gained(ALIKE, 40)).interval[0] > -0.01


def test_no_loss_where_training_one_costs_another() -> None:
    assert estimate(gained(HURTS, 8)).interval[0] > -0.01


@pytest.mark.parametrize(("world", "share"), [(SATURATED, 0.5), (CEILINGS, 0.0), (ORDERED, 0.0)])
def test_it_gains_where_there_is_something_to_gain(world: World, share: float) -> None:
    """Better than the static mix by this share of what the best fixed mix is, which nobody knows before."""
    headroom = world.best_fixed()[1] - float(world.utility(world.r))
    assert headroom > 0.02
    assert estimate(gained(world, 8)).interval[0] > share * headroom


def test_the_loop_finds_the_kkt_mix_of_a_concave_world() -> None:
    """b_i ∝ (r_i a_i)², far from the static mix as capability 0 cannot be learnt. Scores are exact, no spillovers are
    expected, and the best mix by the posterior mean is taken at once."""
    rates = 0.3 * np.array([0.0005, 0.02, 0.02, 0.02])
    world = World(R, np.full(4, 0.1), constant(np.diag(rates)), decisions=40, probes=None)
    known = (R * rates) ** 2 / np.sum((R * rates) ** 2)
    found = run(world, "gains", 0, trust=1.0, confidence=0.5, prior=Prior(spill_sd=1e-4))
    assert found.mixes[-20:].mean(axis=0) == pytest.approx(known, abs=0.05)
    regret = (R * rates) @ (np.sqrt(known) - np.sqrt(found.mixes)).T
    assert regret[-20:].mean() < regret[:20].mean()
    assert regret[-20:].max() < regret[0] / 10  # the first mix is the static one


def test_no_schedule_is_better_than_the_best_fixed_mix_where_transfer_is_constant() -> None:
    """So a policy can only find that mix: a margin of adaptive over fixed does not exist in such a world."""
    world = World(R[:3] / R[:3].sum(), np.array([0.5, 0.1, 0.2]), roots(np.diag([0.2, 0.1, 0.05])), decisions=4)

    def loss(logits: np.ndarray) -> float:
        scores = world.start
        for row in logits.reshape(4, 3):
            scores = world.step(scores, np.exp(row) / np.exp(row).sum())
        return -float(world.r @ scores)

    starts = np.random.default_rng(0).normal(size=(4, 12))
    schedule = max(-minimize(loss, start, method="BFGS").fun for start in starts)
    assert schedule == pytest.approx(world.best_fixed(rounds=16)[1], abs=1e-5)


def test_a_schedule_is_better_where_one_capability_is_learnt_after_another() -> None:
    first, then = np.array([0.7, 0.1, 0.2]), np.array([0.05, 0.6, 0.35])
    schedules = []
    for switch in range(1, 20):
        scores = ORDERED.start
        for decision in range(20):
            scores = ORDERED.step(scores, first if decision < switch else then)
        schedules.append(ORDERED.r @ scores)
    assert max(schedules) > ORDERED.best_fixed()[1] + 0.005


def test_protection_keeps_what_it_protects() -> None:
    """Training 1 costs 0, which has nothing to learn from its own tokens: with β the loss is smaller."""
    transfer = np.array([[0.01, -0.06, 0.0], [0.0, 0.12, 0.0], [0.0, 0.0, 0.06]])
    world = World(np.array([0.4, 0.4, 0.2]), np.array([0.8, 0.2, 0.2]), roots(transfer), decisions=30, probes=4000)
    kept = [np.mean([run(world, "gains", s, beta=b, trust=1.0).scores[-1, 0] for s in range(2)]) for b in (0.0, 8.0)]
    assert kept[1] > kept[0] + 0.01


def test_seeds_are_streams_of_their_own() -> None:
    one, same, other = (run(ALIKE, "read", seed, warmup=20).mixes for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(np.unique(one, axis=0)) > 10  # nor is any decision's draw that of another
