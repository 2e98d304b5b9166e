"""Several outputs of a session are one rollout, whose score is the last one's."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.run.sessions import sessions


def test_the_last_output_counts_and_numbers_are_numbers() -> None:
    keys = ["a_0_9", "a_0_10", "a_1_0", "b-b_0_0"]
    read = sessions(keys)
    assert read.uids == ["a", "a", "a", "b-b"]
    assert read.last.tolist() == [False, True, True, True]
    assert read.responses().tolist() == [2, 2, 2, 1]


@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=5), st.randoms())
def test_the_order_of_the_rows_does_not_matter(prompts: list[list[int]], chance: random.Random) -> None:
    """Prompts with so many sessions of so many outputs."""
    keys = [f"u-{u}_{s}_{o}" for u, outputs in enumerate(prompts) for s, n in enumerate(outputs) for o in range(n)]
    chance.shuffle(keys)
    read = sessions(keys)
    counted: dict[str, list[str]] = defaultdict(list)
    for key, last in zip(keys, read.last.tolist(), strict=True):
        if last:
            counted[key.split("_")[0]].append(key)
    for u, outputs in enumerate(prompts):
        assert sorted(counted[f"u-{u}"]) == sorted(f"u-{u}_{s}_{n - 1}" for s, n in enumerate(outputs))
    expected = [len(prompts[int(key.split("_")[0][2:])]) for key in keys]
    np.testing.assert_array_equal(read.responses(), expected)


def test_no_rows() -> None:
    assert sessions([]).last.tolist() == []
