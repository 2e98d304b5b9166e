import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paced_verl.capability.ledger import Ledger

NAMES = ("code", "maths")
KINDS = ("student", "teacher", "probe")


class SpendAndKill(RuleBasedStateMachine):
    """Responses of any length, promised and settled in any order, with checkpoints, and kills back to the last one.

    The truth is a list of the responses that a run has seen, and of those on their way, kept beside the ledger.
    """

    BUDGET = 300

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(self.BUDGET, NAMES)
        self.seen, self.on_their_way = [], {}
        self.checkpoint = self.kept()

    def kept(self):
        return json.dumps(self.ledger.state_dict()), list(self.seen), dict(self.on_their_way)

    def limited(self, promises):
        return sum(tokens for kind, _, tokens in promises if kind != "probe")

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES), tokens=st.integers(0, 120))
    def promise(self, kind, name, tokens):
        held = self.limited(self.seen) + self.limited(self.on_their_way.values())
        number = self.ledger.promise(kind, name, tokens)
        assert (number is None) == (kind != "probe" and held + tokens > self.BUDGET)
        if number is not None:
            assert number not in self.on_their_way
            self.on_their_way[number] = (kind, name, tokens)

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def settle(self, data):
        number = data.draw(st.sampled_from(sorted(self.on_their_way)))
        kind, name, tokens = self.on_their_way[number]
        used = data.draw(st.integers(0, tokens))
        self.ledger.settle(number, used)
        del self.on_their_way[number]
        self.seen.append((kind, name, used))
        with pytest.raises(ValueError, match=f"promise {number} was settled before"):
            self.ledger.settle(number, used)

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data(), more=st.integers(1, 1000))
    def take_more_than_promised(self, data, more):
        number = data.draw(st.sampled_from(sorted(self.on_their_way)))
        before = self.ledger.state_dict()
        with pytest.raises(ValueError, match="promise the most that can be used"):
            self.ledger.settle(number, self.on_their_way[number][2] + more)
        assert self.ledger.state_dict() == before

    @rule()
    def save(self):
        self.checkpoint = self.kept()

    @rule()
    def kill_and_resume(self):
        state, seen, on_their_way = self.checkpoint
        self.ledger = Ledger(self.BUDGET, NAMES)
        self.ledger.load_state_dict(json.loads(state))
        self.seen, self.on_their_way = list(seen), dict(on_their_way)

    @invariant()
    def nothing_is_overspent_lost_or_counted_twice(self):
        for kind in KINDS:
            for name in NAMES:
                tokens = sum(used for *what, used in self.seen if what == [kind, name])
                assert self.ledger.spent(kind, name) == tokens
        assert self.ledger.spent() == sum(used for *_, used in self.seen)
        spent, promised = self.limited(self.seen), self.limited(self.on_their_way.values())
        assert self.ledger.promised == promised
        assert self.ledger.left == self.BUDGET - spent - promised >= 0


SpendAndKill.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_spending_and_kills = SpendAndKill.TestCase


def spend(ledger, lengths, longest, most):
    """The loop of a run, with a fake generator of responses; ``most`` bounds it so that a test can fail, not hang."""
    seen = []
    for turn in range(most):
        number = ledger.promise("teacher", NAMES[turn % 2], longest)
        if number is None:
            return seen
        seen.append(lengths[turn % len(lengths)])
        ledger.settle(number, seen[-1])
    raise AssertionError(f"the loop has not ended after {most} turns")


def test_a_response_longer_than_what_is_left_ends_the_loop():
    """The released code of ReAD drops such a response, uncounted, and asks for the next one, for ever."""
    ledger = Ledger(100, NAMES)
    assert spend(ledger, [40], longest=40, most=10) == [40, 40]
    assert ledger.left == 20
    ledger = Ledger(100, NAMES)
    assert spend(ledger, [400], longest=400, most=10) == []
    assert ledger.spent() == 0


@settings(deadline=None)
@given(st.integers(0, 2000), st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 5))
def test_a_loop_of_responses_ends_with_less_left_than_the_longest(budget, lengths, unused):
    longest = max(lengths) + unused
    ledger = Ledger(budget, NAMES)
    seen = spend(ledger, lengths, longest, most=budget + 1)
    assert sum(seen) == ledger.spent("teacher") <= budget
    assert ledger.left < longest


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_a_killed_loop_ends_as_an_undisturbed_one(lengths, kills):
    """Killed between promise and settlement: the work is done again from the last checkpoint, and counted once."""
    budget, longest = 600, 50

    def run(kills):
        ledger, state, done, checkpoint = Ledger(budget, NAMES), None, 0, 0
        kills = list(kills)
        while done < len(lengths):
            number = ledger.promise("student", NAMES[done % 2], longest)
            if number is None:
                break
            if kills and kills.pop(0):
                ledger = Ledger(budget, NAMES)
                if state is not None:
                    ledger.load_state_dict(json.loads(state))
                done = checkpoint
                continue
            ledger.settle(number, lengths[done])
            done += 1
            if done % 3 == 0:
                state, checkpoint = json.dumps(ledger.state_dict()), done
        return ledger.settled, ledger.left, done

    assert run(kills) == run([])


def test_kinds_that_are_free_are_counted_and_never_refused():
    ledger = Ledger(0, NAMES)
    ledger.settle(ledger.promise("probe", "code", 10**9), np.int64(7))
    assert ledger.promise("teacher", "code", 1) is None
    assert ledger.promise("teacher", "code", 0) is not None
    assert (ledger.spent("probe"), ledger.spent(capability="code"), ledger.left) == (7, 7, 0)
    assert json.loads(json.dumps(ledger.state_dict()))["settled"]["probe"] == {"code": 7, "maths": 0}


def test_without_a_budget_all_is_promised_and_counted():
    ledger = Ledger(None, NAMES)
    for tokens in (10**12, 5):
        ledger.settle(ledger.promise("student", "maths", tokens), tokens)
    assert ledger.left is None
    assert ledger.spent("student", "maths") == 10**12 + 5
    assert "paced/budget/left" not in ledger.metrics()


def test_metrics_are_what_their_names_say():
    ledger = Ledger(100, NAMES)
    ledger.settle(ledger.promise("student", "code", 30), 20)
    ledger.settle(ledger.promise("probe", "maths", 30), 5)
    ledger.promise("teacher", "maths", 10)
    assert ledger.metrics() == {
        "paced/budget/student": 20,
        "paced/budget/teacher": 0,
        "paced/budget/probe": 5,
        "paced/budget/left": 70,
        "paced/capability/code/tokens": 20,
        "paced/capability/maths/tokens": 5,
    }


def test_what_is_wrong_is_said():
    ledger = Ledger(100, NAMES)
    for call, message in [
        (lambda: ledger.promise("techer", "code", 1), "no kind 'techer'. Did you mean 'teacher'"),
        (lambda: ledger.promise("teacher", "math", 1), "no capability 'math'. Did you mean 'maths'"),
        (lambda: ledger.promise("teacher", "code", -1), "tokens must be >= 0, got -1"),
        (lambda: ledger.settle(3, 1), "promise 3 was never made"),
        (lambda: ledger.spent("nobody"), "no kind 'nobody'"),
        (lambda: Ledger(-1, NAMES), "budget must be >= 0"),
        (lambda: Ledger(1, NAMES, limited=("probe",)), "probe cannot be limited and free"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for tokens in (1.5, float("nan"), "3"):
        with pytest.raises(TypeError):
            ledger.promise("teacher", "code", tokens)
    assert ledger.left == 100


def test_a_state_of_another_run_is_refused_and_more_budget_is_not():
    ledger = Ledger(100, NAMES)
    ledger.settle(ledger.promise("student", "code", 60), 60)
    ledger.promise("student", "code", 20)
    state = ledger.state_dict()
    for other, message in [
        (Ledger(100, ("code", "words")), "capabilities is .*maths.*, here .*words"),
        (Ledger(100, NAMES, limited=("student", "teacher", "probe"), free=()), "limited is"),
        (Ledger(79, NAMES), "1 tokens more than the budget of 79"),
    ]:
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.state_dict() == before
    more = Ledger(1000, NAMES)
    more.load_state_dict(state)
    assert more.left == 920
