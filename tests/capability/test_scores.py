"""Scores of probes: their mean, an error that holds as often as it says, and never one of 0."""

from __future__ import annotations

import numpy as np
import pytest

from paced_verl.capability.scores import scores_of


def test_scores_are_means_over_a_capabilitys_probes() -> None:
    successes, samples = np.array([4, 0, 1, 2, 2]), np.array([4, 4, 0, 4, 2])
    found = scores_of(np.where(samples, successes, 0), samples, np.array([8, 16, 0, 12, 6]), [3, 2])
    assert found.mean == pytest.approx([0.5, 0.75]), "a probe of which no response was scored does not count"
    assert found.length == pytest.approx([3.0, 3.0])
    p = np.array([5, 1]) / 6
    assert found.se[0] == pytest.approx(np.sqrt(np.sum(p * (1 - p) / 4)) / 2)
    with pytest.raises(ValueError, match="no response to the probes"):
        scores_of(np.zeros(3, int), np.array([0, 0, 4]), np.ones(3, int), [2, 1])


def test_a_score_that_was_always_right_is_not_exact() -> None:
    found = scores_of(np.full(10, 4), np.full(10, 4), np.full(10, 4), [10])
    assert found.mean == 1
    assert found.se > 0.02


def test_errors_hold_as_often_as_they_say() -> None:
    """Of the same probes sampled again: between their mean pass rate and the score lie two errors in 19 of 20."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, 64)
    inside = 0
    for _ in range(400):
        found = scores_of(rng.binomial(4, rates), np.full(64, 4), np.ones(64, int), [64])
        inside += abs(found.mean[0] - rates.mean()) < 1.96 * found.se[0]
    assert 0.93 < inside / 400 <= 1
