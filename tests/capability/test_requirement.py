"""What a task requires, against planted requirements."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from paced_verl.capability.requirement import fit_requirement
from paced_verl.errors import PacedError

R = np.array([0.45, 0.3, 0.2, 0.05])
BASE = np.array([0.3, 0.5, 0.2, 0.6])


def interventions(seed: int, count: int = 40, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    """Utility (M,) with an offset, and scores (M, C)."""
    rng = np.random.default_rng(seed)
    scores = BASE + 0.2 * np.sqrt(rng.dirichlet(np.full(4, 0.5), count)) * (1 - BASE) - 0.02
    return scores @ R + 0.4 + rng.normal(0, noise, count), scores


def test_a_planted_requirement_is_found_only_from_the_baseline() -> None:
    utility, scores = interventions(0)
    base = float(BASE @ R) + 0.4
    assert np.abs(fit_requirement(utility, scores, base, BASE).r - R).sum() < 0.05
    assert np.abs(fit_requirement(utility, scores, 0.0, np.zeros(4)).r - R).sum() > 0.3


def test_a_constant_in_the_utility_changes_nothing() -> None:
    utility, scores = interventions(1)
    one, other = (fit_requirement(utility + c, scores, float(BASE @ R) + 0.4 + c, BASE) for c in (0, 100))
    assert one.r == pytest.approx(other.r, abs=1e-6)
    assert one.interval == pytest.approx(other.interval, abs=1e-6)


def test_entropy_makes_it_even() -> None:
    utility, scores = interventions(2)
    fits = [
        fit_requirement(utility, scores, float(BASE @ R) + 0.4, BASE, entropy=e).r for e in (0, 1e-4, 1e-2, 1e3, np.inf)
    ]
    spread = [np.ptp(r) for r in fits]
    assert all(after < before for before, after in pairwise(spread[:4]))
    assert fits[3] == pytest.approx(np.full(4, 0.25), abs=1e-5)
    assert fits[4] == pytest.approx(np.full(4, 0.25))


def test_intervals_cover() -> None:
    """200 sets, 4 weights: 95 %, within what 200 sets can tell."""
    covered = []
    for seed in range(200):
        utility, scores = interventions(seed, count=15, noise=0.01)
        low, high = fit_requirement(utility, scores, float(BASE @ R) + 0.4, BASE).interval.T
        covered.append((low <= R) & (high >= R))
    assert np.mean(covered, axis=0) == pytest.approx(np.full(4, 0.95), abs=0.05)


def test_what_is_measured_better_counts_more() -> None:
    utility, scores = interventions(3, noise=0)
    weight = np.ones(40)
    utility[:20] += 0.05
    weight[:20] = 1e-9
    found = fit_requirement(utility, scores, float(BASE @ R) + 0.4, BASE, weight)
    assert found.r == pytest.approx(R, abs=1e-5)
    assert found.covariance.sum(axis=0) == pytest.approx(np.zeros(4), abs=1e-12)


def test_interventions_that_cannot_tell_are_refused() -> None:
    utility, scores = interventions(4)
    with pytest.raises(PacedError, match="3 interventions for 4"):
        fit_requirement(utility[:3], scores[:3], 0.7, BASE)
    with pytest.raises(PacedError, match="other mixes"):
        fit_requirement(utility, np.tile(scores[:2], (20, 1)), 0.7, BASE)
