"""Headroom from short interventions, against worlds where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from paced_verl.capability.headroom import Transfer, fit_transfer, headroom, hindsight
from paced_verl.capability.optimum import Aim
from paced_verl.errors import PacedError
from scripts.experiments.worlds.world import World, roots

R = np.array([0.5, 0.3, 0.2])
START = np.array([0.2, 0.4, 0.3])
SPILLS = np.array([[0.08, -0.02, 0.0], [0.03, 0.1, 0.0], [0.0, 0.0, 0.05]])
MIXES = np.concatenate([np.eye(3), [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]])
AIM = Aim(R, R, horizon=20)


def measured(transfer: np.ndarray, seed: int, noise: float = 0.004) -> Transfer:
    rng = np.random.default_rng(seed)
    after = roots(transfer)(np.tile(START, (len(MIXES), 1)), MIXES) + rng.normal(0, noise, MIXES.shape)
    return fit_transfer(MIXES, START + rng.normal(0, noise, 3), np.full(3, noise), after, np.full(MIXES.shape, noise))


def truth(transfer: np.ndarray) -> float:
    world = World(R, START, roots(transfer), decisions=20)
    static = float(world.utility(R))
    return (world.best_fixed()[1] - static) / (static - R @ START)


def test_intervals_of_the_transfer_matrix_cover() -> None:
    """300 sets of interventions, 9 entries."""
    covered = [
        (fit.interval[..., 0] <= SPILLS) & (fit.interval[..., 1] >= SPILLS)
        for fit in (measured(SPILLS, seed) for seed in range(300))
    ]
    assert np.mean(covered, axis=0) == pytest.approx(np.full((3, 3), 0.95), abs=0.05)


def test_the_shared_start_correlates_what_is_known() -> None:
    """One-capability mixes: each entry is a difference to the same measurement."""
    fit = fit_transfer(np.eye(2), np.zeros(2), np.full(2, 0.01), np.full((2, 2), 0.1), np.full((2, 2), 0.01), 1e3)
    assert fit.covariance[0] == pytest.approx(np.array([[2e-4, 1e-4], [1e-4, 2e-4]]), rel=1e-4)


def test_what_hurts_is_what_is_known_to_hurt_another() -> None:
    mean = np.array([[-0.5, -0.1, -0.3], [0.2, 0.4, -0.05], [0.0, 0.1, 0.3]])
    fit = Transfer(mean, np.tile(np.eye(3) * 0.1**2, (3, 1, 1)))  # 95 %: ± .196
    assert fit.hurts == [(0, 2)]


def test_headroom_is_that_of_the_world() -> None:
    transfer = np.diag([0.01, 0.1, 0.1])
    found = headroom(measured(transfer, 0, noise=1e-6), START, AIM, worth=0.03)
    assert found.gain == pytest.approx(truth(transfer), abs=1e-3)
    assert found.at_most == pytest.approx(truth(transfer), abs=1e-3)
    assert found.verdict.startswith("It pays")


def test_an_upper_limit_that_holds() -> None:
    known = truth(SPILLS)
    held = [headroom(measured(SPILLS, seed), START, AIM, draws=20).at_most >= known for seed in range(10)]
    assert np.mean(held) >= 0.8


def test_verdicts() -> None:
    alike = np.diag(np.full(3, 0.08))
    assert headroom(measured(alike, 0, noise=1e-4), START, AIM).verdict.startswith("Do not bother")
    assert headroom(measured(alike, 0, noise=0.03), START, AIM).verdict.startswith("Not known")
    nothing = Transfer(np.zeros((3, 3)), np.tile(1e-12 * np.eye(3), (3, 1, 1)))
    assert "gains nothing" in headroom(nothing, START, AIM, draws=5).verdict


def test_interventions_that_cannot_tell_are_refused() -> None:
    ones = np.ones((2, 2))
    with pytest.raises(PacedError, match="tell the capabilities apart"):
        fit_transfer(ones / 2, np.zeros(2), np.zeros(2), ones, ones)
    with pytest.raises(PacedError, match="above 0"):
        fit_transfer(np.eye(2), np.zeros(2), np.zeros(2), ones, 0 * ones)


def test_looking_back_is_what_the_world_would_have_given() -> None:
    """T is known, and decisions have different sizes: the world is run with what was done, and with fixed mixes."""
    known = Transfer(SPILLS, np.tile(np.eye(3) * 1e-16, (3, 1, 1)))
    sizes = np.array([1.0, 1.0, 0.5, 1.5])
    tokens = sizes[:, None] * np.random.default_rng(0).dirichlet(np.ones(3), 4)

    def ended(spent: np.ndarray) -> float:
        scores = START
        for decision in spent:
            scores = roots(SPILLS)(scores, decision)
        return float(R @ scores)

    back = hindsight(known, START, tokens, Aim(R, R))
    best = ended(sizes[:, None] * back.best)
    assert back.headroom == pytest.approx([best - ended(sizes[:, None] * R)] * 3, abs=1e-6)
    assert back.regret == pytest.approx([best - ended(tokens)] * 3, abs=1e-6)
    other = np.random.default_rng(1).dirichlet(np.ones(3), 300)
    assert best >= max(ended(sizes[:, None] * mix) for mix in other) - 1e-4
    assert hindsight(known, START, sizes[:, None] * back.best, Aim(R, R)).regret == pytest.approx([0.0] * 3, abs=1e-9)


def test_looking_back_is_as_unsure_as_the_matrix() -> None:
    widths = []
    for se in (0.01, 0.02):
        matrix = Transfer(SPILLS, np.tile(np.eye(3) * se**2, (3, 1, 1)))
        _, low, high = hindsight(matrix, START, np.tile(R, (4, 1)), Aim(R, R)).headroom
        widths.append(high - low)
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)
