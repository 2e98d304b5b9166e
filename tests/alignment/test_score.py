"""Scores against planted teachers and simulated truths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from paced_verl.alignment import score
from paced_verl.alignment.distil import descent_direction
from paced_verl.alignment.ideal import ideal_gradient, noise_trace, success
from tests.alignment.enumerable import EnumerableModel


def logs(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p / p.sum(-1, keepdims=True)))


def test_planted_teachers() -> None:
    """Under reverse KL q ∝ p e^{bQ} is perfect, e^{−bQ} as wrong as can be, p itself nothing."""
    rng = np.random.default_rng(0)
    p, rates = rng.dirichlet(np.ones(5), size=20), rng.random((20, 5))
    g = ideal_gradient(p, rates)
    for sign, expected in ((1, 1.0), (-1, -1.0)):
        d = descent_direction(logs(p), logs(p * np.exp(sign * 2 * rates)), "reverse_kl")
        np.testing.assert_allclose(score.cosine(g, d), expected, atol=1e-9)
    assert np.isnan(score.cosine(g, descent_direction(logs(p), logs(p), "reverse_kl"))).all()
    assert np.isnan(score.cosine(ideal_gradient(p, np.ones((20, 5)) / 2), d)).sum() in range(21)
    assert np.isnan(score.cosine(np.zeros((20, 5)), d)).all()
    # A tilt f with Cov(pf-weighted) ⟂ g: take f so that p (f − f̄) is orthogonal to g.
    other = rng.normal(size=(20, 5))
    other -= other.mean(-1, keepdims=True)
    other -= g * (np.sum(g * other, -1) / np.sum(g * g, -1))[:, None]
    tilt = other / p
    d = descent_direction(logs(p), logs(p * np.exp(0.01 * tilt)), "reverse_kl")
    assert np.abs(score.cosine(g, d)[np.linalg.norm(d, axis=-1) > score.ZERO]).max() < 1e-9


def test_two_tokens_are_always_plus_or_minus_one() -> None:
    rng = np.random.default_rng(1)
    p, q, rates = rng.dirichlet(np.ones(2), 50), rng.dirichlet(np.ones(2), 50), rng.random((50, 2))
    found = score.cosine(ideal_gradient(p, rates), descent_direction(logs(p), logs(q), "forward_kl"))
    np.testing.assert_allclose(np.abs(found[~np.isnan(found)]), 1)


def test_names_and_lengths_change_no_cosine() -> None:
    rng = np.random.default_rng(2)
    g, d, order = rng.normal(size=(9, 6)), rng.normal(size=(9, 6)), rng.permutation(6)
    np.testing.assert_allclose(score.cosine(g[:, order], d[:, order]), score.cosine(g, d))
    np.testing.assert_allclose(score.cosine(g, 7 * d), score.cosine(g, d))


def test_a_small_step_raises_success_by_the_dot_product() -> None:
    """On the whole table of logits: ΔJ/η → Σ reach · ⟨g, d⟩."""
    model, teacher, eta = EnumerableModel(5, 3, seed=5), EnumerableModel(5, 3, seed=6), 1e-6
    before, after = model.tensors(), model.tensors()
    expected = 0.0
    for prefix in model.prefixes:
        d = descent_direction(logs(model.p(prefix))[None], logs(teacher.p(prefix))[None], "reverse_kl")[0]
        expected += model.reach(prefix) * float(ideal_gradient(model.p(prefix), model.q(prefix)) @ d)
        after[prefix].data += eta * torch.from_numpy(d)
    grown = (model.expected_success(after) - model.expected_success(before)).item() / eta
    assert grown == pytest.approx(expected, rel=1e-4)


def test_what_knows_no_metric() -> None:
    """Slopes along the mixture and along the natural gradient, by differences."""
    rng = np.random.default_rng(3)
    p, q, rates = rng.dirichlet(np.ones(4), 6), rng.dirichlet(np.ones(4), 6), rng.random((6, 4))
    eps = 1e-6
    mixed = (((1 - eps) * p + eps * q) * rates).sum(-1)
    np.testing.assert_allclose(score.teacher_advantage(p, q, rates), (mixed - (p * rates).sum(-1)) / eps, atol=1e-6)
    tilted = p * (q / p) ** eps
    tilted /= tilted.sum(-1, keepdims=True)
    slope = ((tilted * rates).sum(-1) - (p * rates).sum(-1)) / eps
    np.testing.assert_allclose(score.natural_derivative(logs(p), logs(q), rates), slope, atol=1e-5)


def population(rng: np.random.Generator, nodes: int, visits: int, level: float, questions: int) -> score.Scores:
    """Nodes whose directions agree as well everywhere, at a success of about ``level``, measured by so many visits."""
    p = rng.dirichlet(np.full(4, 20.0), nodes)
    signs = rng.permuted(np.tile([1.0, 1.0, -1.0, -1.0], (nodes, 1)), axis=1)
    rates = level + 0.5 * min(level, 1 - level) * signs
    g = ideal_gradient(p, rates)
    length = np.linalg.norm(g, axis=-1, keepdims=True)
    noise = rng.normal(size=(nodes, 4))
    d = g / length + 1.3 * (noise - noise.mean(-1, keepdims=True)) / 2
    k = rng.binomial(visits, rates)
    measured, variance = success(k, np.full(k.shape, visits))
    ghat = ideal_gradient(p, measured)
    scaled = length[:, 0] ** -1  # so that both populations weigh their nodes alike: the truth is known beforehand
    return score.Scores(
        rng.integers(questions, size=nodes),
        (ghat * d).sum(-1) * scaled,
        (ghat**2).sum(-1) * scaled**2,
        noise_trace(p, variance) * scaled**2,
        (d**2).sum(-1),
        np.ones(nodes),
    )


@pytest.mark.parametrize("visits", [8, 20, 100, 400])
def test_the_aggregate_is_not_moved_by_noise(visits: int) -> None:
    rng = np.random.default_rng(4)
    truth = 1 / np.sqrt(1 + 1.3**2 * 3 / 4)
    found = population(rng, 20_000, visits, 0.4, 40)
    naive = found.dot.sum() / np.sqrt(found.gg.sum() * found.dd.sum())
    assert score.aggregate(found) == pytest.approx(truth, abs=0.03)
    if visits <= 20:
        assert naive < truth - 0.04


def test_equal_truths_are_not_reported_as_different() -> None:
    """Nodes of correct rollouts lie at V ≈ .97, those of others at .4: naive means differ, aggregates do not."""
    rng, differ, naive = np.random.default_rng(5), 0, []
    for _ in range(200):
        correct, wrong = population(rng, 400, 100, 0.97, 20), population(rng, 400, 100, 0.4, 20)
        differ += score.difference(correct, wrong).differs
        with np.errstate(invalid="ignore"):
            naive.append([np.nanmean(s.dot / np.sqrt(s.gg * s.dd)) for s in (correct, wrong)])
    assert np.diff(np.mean(naive, axis=0)) > 0.03
    assert 0.005 <= differ / 200 <= 0.1


def test_intervals_over_questions_hold_the_truth() -> None:
    """With questions that differ: 300 sets; an interval that takes nodes for independent is far too narrow."""
    rng = np.random.default_rng(6)
    hits, blind = 0, 0
    for _ in range(300):
        own = np.repeat(rng.normal(0.5, 0.3, 24), 20)
        found = score.Scores(
            np.repeat(np.arange(24), 20),
            own + rng.normal(size=480) * 0.3,
            np.ones(480),
            np.zeros(480),
            np.ones(480),
            np.ones(480),
        )
        interval = score.interval(found)
        hits += interval.low <= 0.5 <= interval.high
        interval = score.interval(replace(found, question=np.arange(480)))
        blind += interval.low <= 0.5 <= interval.high
    assert 0.9 <= hits / 300 <= 0.98
    assert blind / 300 < 0.85


def test_too_few_questions_have_no_interval() -> None:
    found = population(np.random.default_rng(7), 100, 20, 0.5, 2)
    assert np.isnan(score.interval(found).low)
    assert not score.interval(found).differs


def test_halves_are_disjoint_and_reliability_is_spearman_and_browns() -> None:
    rng = np.random.default_rng(8)
    n, k = np.array([7, 20, 1]), np.array([3.0, 20.0, 1.0])
    (n1, k1), (n2, k2) = score.split(n, k, rng)
    assert (n1 + n2).tolist() == n.tolist()
    assert (k1 + k2).tolist() == k.tolist()
    assert (k1 <= n1).all()
    truth = rng.normal(size=5000)
    halves = [truth + rng.normal(size=5000) for _ in range(2)]
    both = np.mean(halves, axis=0)
    expected = np.corrcoef(both, truth)[0, 1] ** 2
    assert score.reliability(*halves) == pytest.approx(expected, abs=0.02)
    assert np.isnan(score.reliability([1, 1, 1], [1, 2, 3]))


def test_matched_groups_have_the_same_composition() -> None:
    first, second = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 1, 1, 1])
    a, b = score.matched(first, second)
    assert np.bincount(first, a).tolist() == [1, 1, 0]
    assert np.bincount(second, b).tolist() == [1, 1]
