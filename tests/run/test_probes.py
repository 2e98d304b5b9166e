"""Probes of a run: who is asked what at which decision, and what a kill changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paced_verl.config.capability import ProbeConfig
from paced_verl.run.measure import Counts
from paced_verl.run.probes import Probes

NAMES = ("code", "maths")
ROWS = (np.array([7, 3, 40, 22]), np.array([1, 30, 5, 11]))
HARD = {7: 3.0, 3: 0.5, 40: 1.0, 22: 2.0, 1: 0.2, 30: 0.4, 5: 0.6, 11: 0.1}
"""−ℓ before anything was learnt: e^−HARD is the pass rate."""


class Student:
    """Learns a little before each probing. The teacher fails at some prompts, at their first tries."""

    def __init__(self, fails: dict[int, int] | None = None):
        self.asked: list[tuple[str, list[int]]] = []
        self.fails = dict(fails or {})
        self.moment = 0

    def value(self, prompt: int) -> float:
        return -HARD[prompt] * 0.8**self.moment

    def measure(self, which: np.ndarray, samples: int, by: Any = "student") -> Counts:
        assert (np.diff(which) > 0).all()
        self.asked.append((by, which.tolist()))
        tokens = np.array([samples * (prompt + 1) for prompt in which.tolist()])
        full = np.full(len(which), samples)
        if by == "student":
            rates = np.exp([self.value(prompt) for prompt in which.tolist()])
            return Counts(which, np.random.default_rng(self.moment).binomial(samples, rates), full, tokens)
        responses: list[list[int] | None] = []
        for prompt in which.tolist():
            self.fails[prompt] = self.fails.get(prompt, 0) - 1
            responses.append(None if self.fails[prompt] >= 0 else [prompt] * (prompt + 1))
        return Counts(which, np.array([r is not None for r in responses], int), full, tokens, responses)

    def likelihood(self, which: np.ndarray, responses: Sequence[Sequence[int]]) -> np.ndarray:
        assert (np.diff(which) > 0).all()
        assert [set(response) for response in responses] == [{prompt} for prompt in which.tolist()]
        self.asked.append(("reads", which.tolist()))
        return np.array([self.value(prompt) for prompt in which.tolist()])


def probes(attempts: int = 1, **settings: Any) -> Probes:
    return Probes(ProbeConfig.model_validate({"prompts": 4, "samples": 50} | settings), ROWS, NAMES, attempts)


def take(one: Probes, student: Student, times: int, last: bool = False) -> list[Any]:
    found = []
    for _ in range(times):
        found.append(one.take(student.measure, student.likelihood, last=last))
        student.moment += 1
    return found


def test_accuracy_is_sampled_and_nothing_else() -> None:
    student = Student()
    found = take(probes(), student, 3)
    assert student.asked == [("student", sorted(HARD))] * 3
    assert found[0].scores.mean == pytest.approx(
        [
            np.mean([found[0].successes[i] / 50 for i in range(4)]),
            np.mean([found[0].successes[i] / 50 for i in (4, 5, 6, 7)]),
        ]
    )
    assert found[0].read.tolist() == [50 * (8 + 4 + 41 + 23), 50 * (2 + 31 + 6 + 12)]
    assert not found[0].taught.any()


def test_the_student_answers_at_first_and_every_so_often_and_reads_each_time() -> None:
    student = Student()
    take(probes(score="divergence", sample_every=3), student, 8)
    kinds = "".join({"teacher": "T", "reads": "r", "student": "s"}[kind] for kind, _ in student.asked)
    assert kinds == "Trs" + "rs" + "r" + "rs" + "r" + "r" + "rs" + "r"
    student.asked.clear()
    late = probes(score="divergence", sample_every=100)
    take(late, student, 3)
    student.asked.clear()
    take(late, student, 1, last=True)
    assert [kind for kind, _ in student.asked] == ["reads", "student"], "after the run it answers"


def test_what_is_only_read_is_as_good_as_what_is_answered() -> None:
    student = Student()
    found = take(probes(score="divergence", samples=400), student, 6)
    for moment, probed in enumerate(found):
        rates = [np.mean([np.exp(-HARD[prompt] * 0.8**moment) for prompt in rows]) for rows in ROWS]
        assert probed.scores.mean == pytest.approx(rates, abs=0.04), moment
        assert (probed.scores.se < 0.04).all()
    read = [found[2], found[4], found[5]]
    assert all(probed.successes.sum() == pytest.approx(8 * 400 * probed.scores.mean.mean()) for probed in read)
    assert [probed.read.tolist() for probed in read] == [[76.0, 51.0]] * 3, "as long as the responses that are read"
    assert found[0].taught.tolist() == [76.0, 51.0]
    assert not any(probed.taught.any() for probed in found[1:])


def test_the_teacher_is_asked_again_for_what_it_failed_at_and_not_for_ever() -> None:
    student = Student(fails={3: 1, 30: 2, 40: 9})
    one = probes(attempts=3, score="divergence")
    (first,) = take(one, student, 1)
    asked = [which for kind, which in student.asked if kind == "teacher"]
    assert asked == [sorted(HARD), [3, 30, 40], [30, 40]]
    assert [which for kind, which in student.asked if kind == "reads"] == [sorted(set(HARD) - {40})]
    assert first.taught.tolist() == [76 + 4 + 41 + 41, 51 + 31 + 31]
    later = take(one, student, 2)[1]
    assert np.isfinite(later.scores.mean).all()
    assert later.successes[2] == pytest.approx(one._sampled[-1].successes[2]), "as its samples said"


def test_a_teacher_that_answers_no_probe_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"of 8 probes it answered none correctly \(paced.targets.attempts=2\)"):
        take(probes(attempts=2, score="divergence"), Student(fails=dict.fromkeys(HARD, 9)), 1)


def test_servers_that_read_nothing_end_the_run() -> None:
    student, one = Student(), probes(score="divergence")
    take(one, student, 3)
    with pytest.raises(RuntimeError, match="of 8 responses the student's servers have read none"):
        one.take(student.measure, lambda which, responses: np.full(len(which), np.nan))


def test_a_wrong_form_is_noticed_where_answers_are_sampled_and_widens_the_error() -> None:
    """The student finds the teacher's words more probable without being right more often."""

    class Parrot(Student):
        def likelihood(self, which: np.ndarray, responses: Sequence[Sequence[int]]) -> np.ndarray:
            return super().likelihood(which, responses) * 0.3**self.moment

    errors = []
    for student in (Student(), Parrot()):
        one = probes(score="divergence", samples=400, sample_every=2)
        take(one, student, 6)
        errors.append(one._misfit.variance**0.5)
    assert errors[1] > 0.02 > errors[0]


@pytest.mark.parametrize("killed", [1, 2, 3, 5])
def test_a_state_goes_on_as_if_nothing_had_been(killed: int) -> None:
    whole = take(probes(score="divergence"), Student(fails={40: 9}), 7)
    student = Student(fails={40: 9})
    first = probes(score="divergence")
    take(first, student, killed)
    second = probes(score="divergence")
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), default=np.ndarray.tolist)))
    for probed, expected in zip(take(second, student, 7 - killed), whole[killed:], strict=True):
        for one, two in zip(vars(probed.scores).values(), vars(expected.scores).values(), strict=True):
            assert one.tolist() == two.tolist()
        assert probed.read.tolist() == expected.read.tolist()
    with pytest.raises(ValueError, match="of 8 probes, not 7"):
        Probes(ProbeConfig(prompts=4), (ROWS[0], ROWS[1][:3]), NAMES).load_state_dict(first.state_dict())
