"""Directions of losses: finite differences, closed forms, exact expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paced_verl.alignment import distil
from paced_verl.alignment.ideal import ideal_gradient
from paced_verl.divergence.functions import get_divergence
from paced_verl.errors import PacedError
from tests.alignment.enumerable import EnumerableModel

DIVERGENCES = (("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.3}), ("akl", {}))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in rng.normal(size=(2, 7, 5)))  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "params"), DIVERGENCES)
def test_a_direction_is_minus_the_finite_difference(name: str, params: dict[str, float], pair) -> None:
    student, teacher = pair
    found = distil.descent_direction(student, teacher, name, **params)
    assert np.abs(found.sum(-1)).max() < 1e-12

    def value(logits: np.ndarray) -> np.ndarray:
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        if name == "akl":  # its r is a constant for the gradient: that of the student before the step
            p, q = np.exp(student), np.exp(teacher)
            order = np.argsort(-q, axis=-1)
            head = np.cumsum(np.take_along_axis(q, order, -1), -1) <= 0.5
            head[:, 0] = True
            gap = np.abs(q - p)
            r = (np.take_along_axis(gap, order, -1) * head).sum(-1) / gap.sum(-1)
            forward = (q * (teacher - log_probs)).sum(-1)
            reverse = (np.exp(log_probs) * (log_probs - teacher)).sum(-1)
            return np.asarray(r * forward + (1 - r) * reverse)
        padded = [np.pad(x, ((0, 0), (0, 1)), constant_values=-np.inf) for x in (log_probs, teacher)]
        return np.asarray(get_divergence(name)(*map(torch.from_numpy, padded), **params))

    for token in range(5):
        step = 1e-6 * (np.arange(5) == token)
        slope = (value(student + step) - value(student - step)) / 2e-6
        np.testing.assert_allclose(found[:, token], -slope, atol=1e-8)


def test_closed_forms_of_both_kls(pair) -> None:
    student, teacher = pair
    p, q = np.exp(student), np.exp(teacher)
    np.testing.assert_allclose(distil.descent_direction(student, teacher, "forward_kl"), q - p, atol=1e-12)
    kl = (p * (student - teacher)).sum(-1, keepdims=True)
    closed = p * (teacher - student + kl)
    np.testing.assert_allclose(distil.descent_direction(student, teacher, "reverse_kl"), closed, atol=1e-12)


def test_nodes_of_different_sizes_lie_in_one_array(pair) -> None:
    student, teacher = (x[:, :3] - np.log(np.exp(x[:, :3]).sum(-1, keepdims=True)) for x in pair)
    wide = [np.pad(x, ((0, 0), (0, 2)), constant_values=-np.inf) for x in (student, teacher)]
    for name in ("forward_kl", "reverse_kl", "jsd"):
        found = distil.descent_direction(*wide, name)
        np.testing.assert_allclose(found[:, :3], distil.descent_direction(student, teacher, name), atol=1e-12)
        assert (found[:, 3:] == 0).all()


def test_there_is_no_other_divergence(pair) -> None:
    with pytest.raises(PacedError, match="reverse_kl"):
        distil.descent_direction(*pair, "reverse_lk")


def test_a_sampled_token_is_right_in_expectation(pair) -> None:
    student, teacher = pair
    total = sum(np.exp(student[:, [a]]) * distil.sampled_direction(student, teacher, np.full(7, a)) for a in range(5))
    np.testing.assert_allclose(total, distil.descent_direction(student, teacher, "reverse_kl"), atol=1e-12)


def test_minillm_is_the_gradient_of_reverse_kl_over_whole_responses() -> None:
    student, teacher = EnumerableModel(4, 3, seed=1), EnumerableModel(4, 3, seed=2)
    logits = student.tensors()
    log_p = {prefix: value.log_softmax(-1) for prefix, value in logits.items()}
    total = torch.zeros((), dtype=torch.float64)
    for response in student.successes:
        ours = sum(log_p[response[:i]][t] for i, t in enumerate(response))
        theirs = sum(np.log(teacher.p(response[:i])[t]) for i, t in enumerate(response))
        total = total + ours.exp() * (ours - theirs)
    gradients = dict(zip(logits, torch.autograd.grad(total, list(logits.values())), strict=True))

    def to_go(prefix: tuple[int, ...]) -> float:
        if len(prefix) == student.length:
            return 0.0
        p, q = student.p(prefix), teacher.p(prefix)
        return float(sum(p[t] * (np.log(p[t] / q[t]) + to_go((*prefix, t))) for t in range(4)))

    for prefix in student.prefixes:
        after = np.array([to_go((*prefix, t)) for t in range(4)])[None]
        log_probs = (np.log(model.p(prefix))[None] for model in (student, teacher))
        found = student.reach(prefix) * distil.minillm_direction(*log_probs, after)[0]
        np.testing.assert_allclose(found, -gradients[prefix].numpy(), atol=1e-12)


def test_dr_grpo_is_the_ideal_gradient_but_for_a_factor() -> None:
    """All groups of three responses listed: mean over them of Σ (r − group's mean) ∇ log p, at the first node."""
    model = EnumerableModel(3, 1, seed=4)
    p, rewards = model.p(()), model.q(())
    total = np.zeros(3)
    for group in np.ndindex(3, 3, 3):
        chance = np.prod(p[list(group)])
        mean = rewards[list(group)].mean()
        total += chance * sum((rewards[a] - mean) * (np.eye(3)[a] - p) for a in group) / 3
    np.testing.assert_allclose(distil.dr_grpo_direction(ideal_gradient(p, rewards), 3), total, atol=1e-12)


def test_teachers_that_know_nothing(pair) -> None:
    student, _ = pair
    student = np.pad(student, ((0, 0), (0, 1)), constant_values=-np.inf)
    for name, null in distil.NULLS.items():
        found = null(student)
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, err_msg=name)
        assert np.isneginf(found[:, -1]).all(), name
    p = np.exp(student[:, :5])
    np.testing.assert_allclose(np.exp(distil.uniform(student))[:, :5], 0.2)
    sharp = p**1.5 / (p**1.5).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(distil.sharpened(student))[:, :5], sharp)
    direction = distil.descent_direction(student, distil.suppressing(student), "reverse_kl")[:, :5]
    advantage = -(p < 0.1).astype(float)
    closed = p * (advantage - (p * advantage).sum(-1, keepdims=True))
    np.testing.assert_allclose(direction, closed, atol=1e-12)
