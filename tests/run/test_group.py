"""The responses to one prompt, as they are scored: nobody waits for ever, and nobody is shown their own response."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from paced_verl.run.group import Group, Scored


def test_sessions_wait_for_the_slowest_and_count_the_others() -> None:
    async def run() -> list[int]:
        group = Group(3)

        async def session(number: int) -> int:
            await asyncio.sleep(0.01 * number)
            group.settle(number, Scored(correct=number != 1, text=str(number)))
            await group.wait()
            return group.successes_beside(number)

        return await asyncio.gather(*(session(number) for number in range(3)))

    assert asyncio.run(run()) == [1, 2, 1]


def test_a_failed_session_keeps_nobody_waiting_and_counts_as_nothing() -> None:
    group = Group(2)
    group.settle(0, Scored(correct=True, text="a"))
    assert not group.complete
    group.settle(1, None)
    assert group.complete
    assert [group.successes_beside(session) for session in range(2)] == [0, 1]
    assert group.correct_beside(0) is None


def test_the_first_entry_of_a_session_counts() -> None:
    group = Group(2)
    group.settle(0, Scored(correct=True, text="a"))
    group.settle(0, None)
    assert group.successes_beside(1) == 1


@given(st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=8))
def test_a_response_is_never_shown_to_itself(outcomes: list[bool | None]) -> None:
    group = Group(len(outcomes))
    for session, correct in enumerate(outcomes):
        group.settle(session, None if correct is None else Scored(correct=correct, text=str(session)))
    for session in range(len(outcomes)):
        others = [str(i) for i, correct in enumerate(outcomes) if correct and i != session]
        shown = group.correct_beside(session)
        assert shown in others if others else shown is None


def test_siblings_see_different_responses_where_there_are_enough() -> None:
    group = Group(4)
    for session in range(4):
        group.settle(session, Scored(correct=True, text=str(session)))
    assert len({group.correct_beside(session) for session in range(4)}) == 4


def test_a_group_is_uniform_when_its_metric_is() -> None:
    group = Group(2)
    group.settle(0, Scored(correct=True, text="", metric=1.0))
    group.settle(1, Scored(correct=False, text="", metric=1.0))
    assert group.uniform
    other = Group(2)
    other.settle(0, Scored(correct=True, text="", metric=1.0))
    other.settle(1, Scored(correct=False, text="", metric=0.0))
    assert not other.uniform
