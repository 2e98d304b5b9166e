"""Levels of difficulty, and which of them comes next."""

from __future__ import annotations

import numpy as np
import pytest

from paced_verl.capability.curriculum import Curriculum, Levels, Parts, frontier_shares, tertile_shares
from paced_verl.capability.table import Capabilities
from paced_verl.errors import PacedError

# ---------------------------------------------------------------------- levels


def test_levels_are_numbers_in_their_order_or_in_the_order_that_is_written() -> None:
    levels = Levels.read([10, 2, 2, 3], "terms", by="tertiles")
    assert levels.names == ("2", "3", "10")
    np.testing.assert_array_equal(levels.of, [2, 0, 0, 1])
    written = Levels.read(["hard", "easy", "easy"], "level", order=["easy", "medium", "hard"], by="tertiles")
    assert written.names == ("easy", "medium", "hard")
    np.testing.assert_array_equal(written.of, [2, 0, 0])
    assert Levels.read(["hard", "easy"], "level").names == ("easy", "hard"), "the frontier needs no order"


@pytest.mark.parametrize(
    ("values", "more", "words"),
    [
        (["a", "b"], {"by": "tertiles"}, "which of them is harder"),
        (["a", "b", "c"], {"order": ["a", "b"]}, "has 'c', too"),
        ([1, None, 2], {}, "1 of 3 training prompts have no level in the column level; the first is row 1"),
        (["{}", "a"], {}, "the first is row 0"),
        (list(range(101)), {}, "101 levels"),
    ],
)
def test_levels_that_are_none_are_refused(values: list, more: dict, words: str) -> None:
    with pytest.raises(PacedError, match=words):
        Levels.read(values, "level", **more)


# ---------------------------------------------------------------------- parts


def parts_of(skills: list[str], difficulty: list[int], held_out: tuple[int, ...] = ()) -> tuple[Parts, Levels]:
    capabilities, levels = Capabilities.read(skills), Levels.read(difficulty, "level")
    groups = capabilities.groups.copy()
    groups[list(held_out)] = -1
    return Parts.split(Capabilities(capabilities.names, groups, "skill"), levels), levels


def test_parts_are_the_pairs_that_have_prompts_to_train() -> None:
    parts, _ = parts_of(["b", "a", "b", "b", "a"], [2, 1, 1, 2, 3], held_out=(4,))
    assert parts.names == ("a/1", "b/1", "b/2"), "a/3 is all set apart, a/2 does not exist"
    np.testing.assert_array_equal(parts.of, [2, 0, 1, 2, -1])
    np.testing.assert_array_equal(parts.capability, [0, 1, 1])
    assert parts.even() == pytest.approx([1, 0.5, 0.5])


def test_without_levels_parts_are_capabilities() -> None:
    capabilities = Capabilities.read(["b", "a", "b"])
    parts = Parts.split(capabilities, None)
    assert parts.names == capabilities.names
    assert parts.of is capabilities.groups
    assert (parts.even() == 1).all()


def test_probes_count_for_the_part_of_their_level() -> None:
    parts, levels = parts_of(["a", "a", "a", "b", "b", "b", "a"], [1, 2, 1, 1, 1, 2, 3], held_out=(0, 1, 3, 6))
    assert parts.names == ("a/1", "b/1", "b/2")
    counted = parts.count([np.array([0, 1, 6]), np.array([3])], levels, np.array([5, 7, 9, 11]))
    np.testing.assert_array_equal(counted, [5, 11, 0]), "levels 2 and 3 of a have nothing left to train"


# ---------------------------------------------------------------------- shares of levels


def test_levels_are_shared_by_the_chance_that_they_are_nearest_to_one_half() -> None:
    rng = np.random.default_rng(99)
    k, n = np.array([9, 5, 1]), np.array([10, 10, 4])
    posterior = rng.beta(1 + k, 1 + n - k, (200_000, 3))
    known = np.bincount(np.abs(posterior - 0.5).argmin(axis=1), minlength=3) / 200_000
    assert frontier_shares(k, n, np.random.default_rng(0)) == pytest.approx(known, abs=0.04)


def test_the_frontier_settles_and_moves_on() -> None:
    rng = np.random.default_rng(0)
    assert frontier_shares([980, 510, 30], [1000, 1000, 1000], rng)[1] == 1
    assert frontier_shares([990, 970, 480], [1000, 1000, 1000], rng)[2] == 1


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(PacedError, match="successes"):
        frontier_shares([3], [2], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("progress", "known"),
    [(0, [0.1, 0.8, 0.1]), (0.3, [0.1, 0.5, 0.4]), (0.7, [0.05, 0.2, 0.75]), (1, [0.05, 0.2, 0.75])],
)
def test_the_schedule_of_the_paper(progress: float, known: list[float]) -> None:
    assert tertile_shares(progress, 3) == pytest.approx(known)
    assert tertile_shares(progress, 6) == pytest.approx(np.repeat(known, 2) / 2)
    assert tertile_shares(progress, 7).sum() == pytest.approx(1)
    assert tertile_shares(progress, 2) == pytest.approx(np.array(known[:2]) / sum(known[:2]))
    assert tertile_shares(progress, 1) == pytest.approx([1])


COUNTS = (np.array([8, 4, 0, 2, 5]), np.array([8, 8, 8, 8, 8]))


def shares(names: tuple[str, str] = ("a", "b"), by: str = "frontier", **more: object) -> np.ndarray:
    skills, difficulty = [names[0]] * 3 + [names[1]] * 2, [1, 2, 3, 1, 2]
    parts, _ = parts_of(skills, difficulty)
    given = {"progress": 0.0, "decision": 1, "weighs": np.ones(5, bool), "counts": COUNTS} | more
    order = np.argsort(names)
    counts = tuple(np.concatenate([np.split(n, [3])[i] for i in order]) for n in given["counts"])
    weighs = np.concatenate([np.split(given["weighs"], [3])[i] for i in order])
    found = Curriculum(by, 7).shares(parts, tuple(sorted(names)), given["progress"], given["decision"], counts, weighs)
    return np.concatenate([found[parts.capability == i] for i in np.argsort(order)])


@pytest.mark.parametrize("by", ["frontier", "tertiles"])
def test_shares_add_up_to_one_within_each_capability(by: str) -> None:
    found = shares(by=by)
    assert found[:3].sum() == pytest.approx(1)
    assert found[3:].sum() == pytest.approx(1)


def test_a_capabilitys_shares_are_its_own_whatever_else_there_is() -> None:
    assert shares(("a", "b"))[:3] == pytest.approx(shares(("a", "z"))[:3])
    assert shares(("q", "b"))[3:] == pytest.approx(shares(("a", "b"))[3:])


def test_a_decision_is_its_number_and_its_counts() -> None:
    np.testing.assert_array_equal(shares(), shares())
    assert (shares() != shares(decision=2)).any()


def test_a_level_whose_prompts_all_weigh_nothing_gets_nothing_while_another_has_weight() -> None:
    found = shares(by="tertiles", weighs=np.array([False, True, True, False, False]))
    assert found[0] == 0
    assert found[:3].sum() == pytest.approx(1)
    assert found[3:].sum() == pytest.approx(1), "none of b weighs: the sampler gives b's share away"
