"""Which level comes next."""

from __future__ import annotations

import numpy as np
import pytest

from paced_verl.capability.curriculum import frontier, tertile_shares, tertiles
from paced_verl.errors import PacedError


def shares(k: list[int], n: list[int]) -> np.ndarray:
    return np.bincount([frontier(k, n, draw) for draw in range(4000)], minlength=len(k)) / 4000


def test_levels_are_drawn_as_often_as_they_are_nearest_to_the_target() -> None:
    rng = np.random.default_rng(99)
    k, n = np.array([9, 5, 1]), np.array([10, 10, 4])
    posterior = rng.beta(1 + k, 1 + n - k, (200_000, 3))
    known = np.bincount(np.abs(posterior - 0.5).argmin(axis=1), minlength=3) / 200_000
    assert shares([9, 5, 1], [10, 10, 4]) == pytest.approx(known, abs=0.03)


def test_it_settles_on_the_frontier_and_moves_on() -> None:
    assert shares([980, 510, 30], [1000, 1000, 1000])[1] == 1
    assert shares([990, 970, 480], [1000, 1000, 1000])[2] == 1


def test_a_draw_is_its_seed() -> None:
    draws = [frontier([1, 1, 1], [2, 2, 2], draw, seed=3) for draw in range(50)]
    assert draws == [frontier([1, 1, 1], [2, 2, 2], draw, seed=3) for draw in range(50)]
    assert draws != [frontier([1, 1, 1], [2, 2, 2], draw, seed=4) for draw in range(50)]
    assert len(set(draws)) == 3


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(PacedError, match="successes"):
        frontier([3], [2], 0)
    with pytest.raises(PacedError, match="one level"):
        tertiles(0.5, 0, 0)


@pytest.mark.parametrize(
    ("progress", "known"),
    [(0, [0.1, 0.8, 0.1]), (0.3, [0.1, 0.5, 0.4]), (0.7, [0.05, 0.2, 0.75]), (1, [0.05, 0.2, 0.75])],
)
def test_the_schedule_of_the_paper(progress: float, known: list[float]) -> None:
    assert tertile_shares(progress) == pytest.approx(known)
    drawn = np.bincount([tertiles(progress, 6, draw) // 2 for draw in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx(known, abs=0.03)


def test_fewer_than_three_levels() -> None:
    assert {tertiles(0.5, 1, draw) for draw in range(20)} == {0}
    assert {tertiles(0.5, 2, draw) for draw in range(50)} == {0, 1}
