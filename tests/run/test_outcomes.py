"""When verl would replace prompts for ever, and when it is only having a bad moment."""

from __future__ import annotations

from paced_verl.run.group import Scored
from paced_verl.run.outcomes import Outcome, RefillLimit, Report, Visit

FAILED = Outcome(0, error="ValueError: no")
HOPELESS = Outcome(0, successes=0, responses=4, dropped=True)
MASTERED = Outcome(0, successes=4, responses=4, dropped=True)
TRAINS = Outcome(0, successes=2, responses=4)


def test_failures_of_every_prompt_end_the_run_with_the_first_error() -> None:
    limit = RefillLimit(failed=4, dropped=100)
    limit.observe([Outcome(0, error="ConnectionError: refused"), FAILED])
    limit.observe([FAILED])
    assert limit.problem() is None
    limit.observe([FAILED])
    problem = limit.problem()
    assert problem is not None
    assert "4 prompts in a row failed" in problem
    assert problem.endswith("The first error: ConnectionError: refused")


def test_one_prompt_that_ends_well_begins_the_count_anew() -> None:
    limit = RefillLimit(failed=4, dropped=100)
    for well in (TRAINS, HOPELESS):
        limit.observe([FAILED] * 3)
        limit.observe([FAILED, well, FAILED, FAILED])
        assert limit.problem() is None
    limit.observe([Outcome(0, error="OSError: later")] * 4)
    assert "OSError: later" in (limit.problem() or "")


def test_groups_that_are_all_dropped_end_the_run_and_say_what_they_were() -> None:
    limit = RefillLimit(failed=4, dropped=10)
    limit.observe([HOPELESS] * 3 + [FAILED])
    limit.observe([MASTERED] * 6)
    assert limit.problem() is None
    limit.observe([HOPELESS])
    problem = limit.problem()
    assert problem is not None
    assert "dropped 10 prompts in a row (6 with all responses correct, 4 with none)" in problem
    assert "max_num_gen_batches" in problem


def test_a_group_that_trains_begins_the_count_of_dropped_ones_anew() -> None:
    limit = RefillLimit(failed=4, dropped=10)
    for _ in range(5):
        limit.observe([HOPELESS] * 9)
        limit.observe([TRAINS])
    assert limit.problem() is None


def test_the_limits_grow_with_what_is_on_its_way() -> None:
    small, large = RefillLimit.of(2, 1, 0), RefillLimit.of(512, 1.5, 0)
    assert (small.most_failed, small.most_dropped) == (16, 256)
    assert (large.most_failed, large.most_dropped) == (1536, 5120)
    assert RefillLimit.of(8, 1, gen_batches=3).most_dropped == 24


def test_a_visit_ends_with_its_last_session_and_knows_what_it_cost() -> None:
    visit = Visit(prompt=7, sessions=3)
    for session, correct in enumerate((True, True, False)):
        visit.group.settle(session, Scored(correct, "", metric=float(correct)))
    assert [visit.end(None, 10.0) for _ in range(3)] == [False, False, True]
    assert visit.outcome(filtered=True) == Outcome(7, successes=2, responses=3, teacher_tokens=30.0)


def test_a_uniform_group_is_dropped_under_the_filter_alone_and_never_after_an_error() -> None:
    for error, filtered, dropped in ((None, True, True), (None, False, False), ("ValueError: no", True, False)):
        visit = Visit(prompt=0, sessions=2)
        for session in range(2):
            visit.group.settle(session, Scored(True, "", metric=1.0))
        visit.end(error, 0.0)
        visit.end(None, 0.0)
        outcome = visit.outcome(filtered)
        assert (outcome.dropped, outcome.error) == (dropped, error)


def test_reports_add_up() -> None:
    report = Report(["a"], [TRAINS])
    report.add([Report(["b"], [Outcome(1, dropped=True, teacher_tokens=5.0)]), Report([], [FAILED])])
    assert report.errors == ["a", "b"]
    assert len(report.outcomes) == 3
    assert report.dropped_tokens == 5.0
