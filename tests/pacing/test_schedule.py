from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paced_verl.pacing.schedule import Schedule, refresh_due

FORWARD = {"divergence": "forward_kl", "responses": "teacher"}
REVERSE = {"divergence": "reverse_kl", "responses": "student"}


def two_stages(ends: list[int | float], total: int) -> Schedule:
    return Schedule.from_ends(ends, [FORWARD, REVERSE], total)


def test_fractions_and_steps_name_the_same_stages() -> None:
    assert two_stages([0.5, 1.0], 10) == two_stages([5, 10], 10)
    assert [(s.first, s.last) for s in two_stages([0.24, 1.0], 10).stages] == [(1, 2), (3, 10)]


def test_halves_round_up() -> None:
    assert [two_stages([0.5, 1.0], total).stages[0].last for total in (3, 5, 7, 9)] == [2, 3, 4, 5]
    assert two_stages([0.25, 1.0], 10).stages[0].last == 3


@given(
    total=st.integers(2, 500),
    cuts=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_stages_cover_every_step_exactly_once(total: int, cuts: list[float]) -> None:
    ends = [*cuts, 1.0]
    try:
        schedule = Schedule.from_ends(ends, [FORWARD] * len(ends), total)
    except ValueError:
        lasts = [0, *(int(end * total + 0.5) for end in ends)]
        assert any(b <= a for a, b in pairwise(lasts))  # only empty stages are refused
        return
    covered = [step for stage in schedule.stages for step in range(stage.first, stage.last + 1)]
    assert covered == list(range(1, total + 1))
    assert all(stage.first <= step <= stage.last for step in covered for stage in [schedule.at(step)])


@pytest.mark.parametrize(
    ("ends", "total", "message"),
    [
        ([0.6, 0.4], 10, "overlap"),
        ([5, 5], 10, "overlap"),
        ([0.01, 1.0], 10, "empty"),
        ([5, 12], 10, "after the end"),
        ([0.5, 0.9], 10, "ends at step 9, but the run has 10"),
    ],
)
def test_wrong_ends_say_what_is_wrong(ends: list[int | float], total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_stages(ends, total)


def refreshes(refresh: str, every: int | None, schedule: Schedule, last: int | None = None) -> list[int]:
    due = []
    for step in range(1, schedule.stages[-1].last + 1):
        if refresh_due(step, last, refresh, every, schedule):
            due.append(step)
            last = step
    return due


def test_when_pass_rates_are_estimated() -> None:
    schedule = two_stages([4, 10], 10)
    assert refreshes("start", None, schedule) == [1]
    assert refreshes("stage", None, schedule) == [1, 5]
    assert refreshes("every", 3, schedule) == [1, 4, 7, 10]
    assert refreshes("never", None, schedule) == []
    assert refreshes("stage", None, schedule, last=1) == [5], "a table from a file stands for the first estimate"


def test_a_resumed_run_refreshes_where_the_undisturbed_one_does() -> None:
    schedule = two_stages([4, 10], 10)
    for refresh, every in (("start", None), ("stage", None), ("every", 3)):
        undisturbed = refreshes(refresh, every, schedule)
        for killed_after in range(1, 10):
            last = max((step for step in undisturbed if step <= killed_after), default=None)
            resumed = [
                step
                for step in range(killed_after + 1, 11)
                if refresh_due(step, last, refresh, every, schedule) and (last := step)
            ]
            assert resumed == [step for step in undisturbed if step > killed_after]
