"""Trees, ideal gradients and their noise, against a model whose every response can be listed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paced_verl.alignment.ideal import ideal_gradient, noise_trace, success, value
from paced_verl.alignment.tree import FREE, Rollout, Tree
from tests.alignment.enumerable import EnumerableModel


@pytest.fixture(scope="module")
def model() -> EnumerableModel:
    return EnumerableModel(vocabulary=6, length=3, seed=3)


def test_the_ideal_gradients_are_those_of_the_expected_success(model: EnumerableModel) -> None:
    """By automatic differentiation of the sum over all 216 responses: reach · p (Q − V) at every node."""
    logits = model.tensors()
    gradients = torch.autograd.grad(model.expected_success(logits), list(logits.values()), materialize_grads=True)
    for prefix, gradient in zip(logits, gradients, strict=True):
        ours = model.reach(prefix) * ideal_gradient(model.p(prefix), model.q(prefix))
        np.testing.assert_allclose(ours, gradient.numpy(), atol=1e-12)
        assert abs(ours.sum()) < 1e-12


def test_and_those_of_central_differences(model: EnumerableModel) -> None:
    step, prefix = 1e-5, (2,)
    for token in range(model.vocabulary):
        values = []
        for sign in (1, -1):
            moved = {name: torch.from_numpy(each).clone() for name, each in model.logits.items()}
            moved[prefix][token] += sign * step
            values.append(model.expected_success(moved).item())
        found = model.reach(prefix) * ideal_gradient(model.p(prefix), model.q(prefix))[token]
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_the_value_of_the_root_is_the_expected_success(model: EnumerableModel) -> None:
    listed = sum(chance * model.successes[response] for response, chance in model.responses())
    assert value(model.p(()), model.q(())) == pytest.approx(listed)


def test_valid_visits_are_a_fair_sample_and_pooled_ones_are_not(model: EnumerableModel) -> None:
    """Free rollouts, and many that were forced onto a path: at nodes above, what was forced says nothing."""
    rng = np.random.default_rng(0)
    best = max(model.successes, key=lambda response: (model.successes[response], -model.reach(response)))
    forced = [model.rollout(rng, best) for _ in range(4000)]
    beside = [model.rollout(rng, (*best[:1], token)) for token in range(model.vocabulary) for _ in range(500)]
    tree = Tree([model.rollout(rng) for _ in range(4000)] + forced + beside)
    checked = 0
    for prefix in model.prefixes:
        visits = tree.visits(prefix)
        truth = model.q(prefix)[visits.tokens]
        enough = visits.n >= 100
        error = np.abs(visits.k / visits.n - truth)[enough]
        assert (error <= 4.5 * np.sqrt(np.maximum(truth * (1 - truth), 0.01) / visits.n)[enough]).all(), prefix
        checked += int(enough.sum())
    assert checked > 20
    pooled = [r.success for r in tree.through(best[:1])]
    naive, fair = np.mean(pooled), tree.visits(()).of([best[0]])
    truth = model.q(())[best[0]]
    assert abs(fair[1][0] / fair[0][0] - truth) < 0.05 < abs(naive - truth), "the trap is there, and not fallen into"


def test_the_case_of_one_in_twenty() -> None:
    """Whoever takes the door gets home in 1 of 20 tries; forced onto the right way behind it, always."""
    free = [Rollout((0, int(i < 5), 9), FREE, float(i < 5)) for i in range(100)]
    forced = [Rollout((0, 1, 9), 1, 1.0) for _ in range(90)]
    tree = Tree([*free, *forced])
    assert tree.visits(()).of([0])[1] / tree.visits(()).of([0])[0] == pytest.approx(0.05)
    assert np.mean([r.success for r in tree.through((0,))]) == pytest.approx(0.5)
    n, k = tree.visits((0,)).of([0, 1, 7])
    assert (n.tolist(), k.tolist()) == ([95, 95, 0], [0, 95, 0])


def test_a_forced_token_counts_where_it_was_forced_and_below() -> None:
    tree = Tree([Rollout((3, 4, 5), 1, 1.0)])
    assert tree.visits(()).n.tolist() == []
    assert (tree.visits((3,)).tokens.tolist(), tree.visits((3,)).n.tolist()) == ([4], [1])
    assert tree.visits((3, 4)).n.tolist() == [1]
    assert tree.visits((3, 4, 5)).n.tolist() == []


def test_prefixes_are_of_tokens_and_not_of_bytes() -> None:
    """Token 256 has the bytes of token 1 one place further, 2³¹ those that end a range."""
    tree = Tree([Rollout((256, 1), FREE, 1.0), Rollout((1, 256), FREE, 0.0), Rollout((2**31, 0), FREE, 0.0)])
    assert tree.visits(()).tokens.tolist() == [1, 256, 2**31]
    assert tree.visits((2**31,)).n.tolist() == [1]
    assert tree.visits((0,)).n.tolist() == []


def test_a_rollout_can_be_left_out_once() -> None:
    own = Rollout((1, 2), FREE, 1.0)
    tree = Tree([own, own, Rollout((1, 3), FREE, 0.0)])
    assert tree.visits((1,)).n.tolist() == [2, 1]
    assert tree.visits((1,), without=own).n.tolist() == [1, 1]
    assert tree.visits((1,), without=Rollout((9,), FREE, 1.0)).n.tolist() == [2, 1]


def test_rollouts_that_come_later_are_as_if_they_had_come_at_once(model: EnumerableModel) -> None:
    rng = np.random.default_rng(1)
    rollouts = [model.rollout(rng, forced) for forced in [(), (1,), (2, 3)] * 50]
    at_once, later = Tree(rollouts), Tree(rollouts[:20])
    later.add(rollouts[20:])
    for prefix in model.prefixes:
        one, other = at_once.visits(prefix), later.visits(prefix)
        assert (one.tokens.tolist(), one.n.tolist(), one.k.tolist()) == (
            other.tokens.tolist(),
            other.n.tolist(),
            other.k.tolist(),
        )
    with pytest.raises(ValueError, match="forced: expected -1 to 1, got 2"):
        later.add([Rollout((1, 2), 2, 0.0)])


def test_the_noise_of_a_measured_gradient_is_what_it_is_said_to_be() -> None:
    rng = np.random.default_rng(2)
    p, truth, n = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.9, 0.2, 0.6, 0.5]), np.array([40, 20, 8, 30])
    k = rng.binomial(n, truth, size=(200_000, 4))
    rate, variance = success(k, np.broadcast_to(n, k.shape))
    measured = ideal_gradient(np.broadcast_to(p, k.shape), rate)
    squared = ((measured - ideal_gradient(p, truth)) ** 2).sum(-1)
    found = noise_trace(np.broadcast_to(p, k.shape), variance)
    error = np.sqrt(squared.var() / len(k) + found.var() / len(k))
    assert abs(squared.mean() - found.mean()) < 4 * error
    by_hand = np.diag(p) - np.outer(p, p)
    exact = np.sum((by_hand**2).sum(0) * truth * (1 - truth) / n)
    assert squared.mean() == pytest.approx(exact, rel=0.02)


def test_places_without_a_token_count_for_nothing() -> None:
    p, rates = np.array([0.6, 0.4, 0.0]), np.array([1.0, 0.0, np.nan])
    assert ideal_gradient(p, rates) == pytest.approx([0.24, -0.24, 0.0])
    assert noise_trace(p, np.array([0.1, 0.1, np.nan])) == pytest.approx(noise_trace(p[:2], np.array([0.1, 0.1])))
    assert np.isnan(success([0, 1], [0, 1])[0]).tolist() == [True, False]
    assert np.isnan(success([0, 1], [0, 1])[1]).all()
