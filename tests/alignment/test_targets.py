"""What is measured: windows, inclusion, support, visits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.alignment import targets


def test_windows_double() -> None:
    first = [0, 49, 50, 149, 150, 349, 350, 749, 750]
    assert targets.window_of(first).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]


@given(st.lists(st.integers(0, 400), max_size=6), st.integers(0, 60), st.integers(0, 5))
def test_as_many_of_each_window_as_there_are(lengths: list[int], nodes: int, seed: int) -> None:
    chosen = targets.choose_positions(lengths, nodes, np.random.default_rng(seed))
    assert len(chosen) == min(nodes, sum(lengths))
    assert len({*zip(chosen.rollout.tolist(), chosen.position.tolist(), strict=True)}) == len(chosen)
    for rollout, position in zip(chosen.rollout, chosen.position, strict=True):
        assert 0 <= position < lengths[rollout]
    counts = np.bincount(targets.window_of(chosen.position)) if len(chosen) else np.zeros(0)
    positions = np.concatenate([np.arange(n) for n in lengths]) if sum(lengths) else np.zeros(0, int)
    sizes = np.bincount(targets.window_of(positions), minlength=len(counts))
    some = counts[counts < sizes[: len(counts)]]
    assert not len(some) or np.ptp(some) <= 1
    assert not len(some) or some.min() >= counts.max() - 1, "no window has more than one that could have more"


def test_means_over_chosen_positions_are_means_over_all_of_them() -> None:
    """Exactly: every choice of one window of 4 and one of 3, listed, each as likely; the inclusion is what it is."""
    lengths = [52, 51]
    values = np.random.default_rng(0).normal(size=(2, 60))
    truth = sum(values[r, :n].sum() for r, n in enumerate(lengths))
    seen: dict[tuple[int, int], float] = {}
    found, draws = [], 4000
    rng = np.random.default_rng(1)
    for _ in range(draws):
        chosen = targets.choose_positions(lengths, 5, rng)
        found.append(np.sum(values[chosen.rollout, chosen.position] / chosen.inclusion))
        for r, t in zip(chosen.rollout.tolist(), chosen.position.tolist(), strict=True):
            seen[r, t] = seen.get((r, t), 0) + 1 / draws
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / draws**0.5
    assert seen[0, 51] == pytest.approx(2.5 / 3, abs=0.05), "of three positions two or three, as the odd one falls"
    assert seen[0, 7] == pytest.approx(2.5 / 100, abs=0.02)


def test_what_cannot_be_divided_is_drawn() -> None:
    rng = np.random.default_rng(0)
    found = np.array([targets.shares(np.array([10, 10, 1]), 6, rng) for _ in range(500)])
    assert (found.sum(1) == 6).all()
    assert set(map(tuple, found.tolist())) == {(3, 2, 1), (2, 3, 1)}
    assert found[:, 0].mean() == pytest.approx(2.5, abs=0.1)


def test_tokens_that_somebody_says() -> None:
    student = np.array([0.9, 0.05, 0.01, 0.03, 0.01])
    teachers = np.array([[0.1, 0.001, 0.8, 0.0, 0.01], [0.97, 0.0, 0.01, 0.01, 0.01]])
    assert targets.support(student, teachers).tolist() == [0, 2, 1, 3]
    assert targets.support(student, teachers, most=3).tolist() == [0, 2, 1]
    assert targets.support(student, teachers[:0], threshold=0.5).tolist() == [0]


def variance(c: np.ndarray, q: np.ndarray, n: np.ndarray) -> float:
    return float(np.sum(c**2 * q * (1 - q) / n))


def test_visits_by_contrast_are_the_best_where_success_is_not_known() -> None:
    """Of all ways to deal 30 visits to four tokens, listed, none has a smaller variance at Q = ½ everywhere."""
    p, d = np.array([0.6, 0.25, 0.1, 0.05]), np.array([-0.2, 0.3, 0.05, -0.15])
    c = targets.contrast(p, d)
    n = targets.allocate(c[None], 30)
    assert n.sum() == 30
    half = np.full(4, 0.5)
    listed = (cut for cut in itertools.product(range(1, 28), repeat=3) if sum(cut) < 30)
    best = min(variance(c, half, np.array([*cut, 30 - sum(cut)])) for cut in listed)
    assert variance(c, half, np.maximum(n, 1)) <= best * 1.02
    assert variance(c, half, np.maximum(n, 1)) < 0.85 * variance(c, half, np.full(4, 7.5))


def test_visits_for_several_teachers_and_for_none() -> None:
    contrasts = np.array([[[3.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 5.0]]])
    assert targets.allocate(contrasts, 20).tolist() == [[10, 0], [0, 10]]
    assert targets.allocate(contrasts, 24, least=1).tolist() == [[11, 1], [1, 11]]
    assert targets.allocate(contrasts * 0, 10, least=1).sum() == 10
    assert targets.allocate(contrasts, 2, least=3).tolist() == [[3, 3], [3, 3]]
