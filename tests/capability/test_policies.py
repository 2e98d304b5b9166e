"""What every policy keeps: its place in the order, its floor, its memory."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from paced_verl.capability.policies import PolicySettings, get_policy, make_policy, register_policy
from paced_verl.capability.protocol import Outcome, Policy, State
from paced_verl.errors import PacedError

NAMES = ("math", "code", "tools", "chat")
POLICIES = ["uniform", "task_static", "one_hot", "fixed", "read", "greedy", "kl_headroom", "gains"]
R = np.array([0.3, 0.3, 0.25, 0.15])  # two of the same: no order may decide between them
MIX = np.array([0.1, 0.2, 0.3, 0.4])
DECISIONS = 8


def story(order: list[int]) -> tuple[list[State], list[Outcome]]:
    """Eight decisions that happened, with the capabilities in an order."""
    rng = np.random.default_rng(0)
    scores = np.cumsum(rng.uniform(0, 0.06, (DECISIONS + 2, 4)) * [0.1, 1.0, 1.0, 0.3], axis=0)
    mixes, spent = rng.dirichlet(np.ones(4), DECISIONS + 1), np.zeros(4)
    states, outcomes = [], []
    for t in range(DECISIONS + 1):
        kl, se = 1 - scores[t], np.full(4, 0.01)
        state = State(R[order], scores[t, order], se, spent[order], 1000.0 * (20 - t), t, kl[order])
        gain = float(R @ (scores[t + 1] - scores[t]))
        after = scores[t + 1, order]
        outcomes.append(Outcome(mixes[t, order], 1000 * mixes[t, order], scores[t, order], after, se, gain))
        states.append(state)
        spent = spent + 1000 * mixes[t]
    return states, outcomes


def make(name: str, order: list[int] | None = None, **settings: object) -> Policy:
    order = order or [0, 1, 2, 3]
    names = tuple(NAMES[i] for i in order)
    return make_policy(
        name, PolicySettings(names, 1000.0, mix=MIX[order], cost=MIX[order], seed=5, warmup=7, **settings)
    )


def proposals(policy: Policy, states: list[State], outcomes: list[Outcome]) -> np.ndarray:
    found = []
    for state, outcome in zip(states, outcomes, strict=True):
        found.append(policy.propose(state))
        policy.observe(outcome)
    return np.array(found)


@pytest.mark.parametrize("name", POLICIES)
def test_the_order_of_capabilities_decides_nothing(name: str) -> None:
    order = [2, 0, 3, 1]
    straight = proposals(make(name, floor=0.02), *story([0, 1, 2, 3]))
    assert np.array_equal(proposals(make(name, order, floor=0.02), *story(order)), straight[:, order])


@pytest.mark.parametrize("name", POLICIES)
def test_proposals_are_mixes_above_the_floor_and_repeatable(name: str) -> None:
    states, outcomes = story([0, 1, 2, 3])
    policy = make(name, floor=0.05)
    found = proposals(policy, states, outcomes)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))
    assert found.min() >= 0.05 - 1e-12
    assert np.array_equal(policy.propose(states[-1]), policy.propose(states[-1]))
    assert all(isinstance(value, float) for value in policy.metrics().values())


@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_policy_goes_on_as_an_undisturbed_one(name: str) -> None:
    states, outcomes = story([0, 1, 2, 3])
    undisturbed, killed = make(name), make(name)
    whole = proposals(undisturbed, states, outcomes)
    proposals(killed, states[:6], outcomes[:6])
    state = through_files(killed.state_dict())
    resumed = make(name, [3, 1, 0, 2])  # the configuration lists them in another order now
    resumed.load_state_dict(state)
    order = [3, 1, 0, 2]
    others, theirs = story(order)
    assert np.array_equal(proposals(resumed, others[6:], theirs[6:]), whole[6:][:, order])


def test_the_transfer_is_in_the_order_of_the_settings() -> None:
    order = [3, 1, 0, 2]
    (states, outcomes), (others, theirs) = story([0, 1, 2, 3]), story(order)
    one, other = make("gains"), make("gains", order)
    assert one.transfer() is None, "nothing was observed"
    proposals(one, states, outcomes)
    proposals(other, others, theirs)
    for mine, its in zip(one.transfer(), other.transfer(), strict=True):
        assert np.array_equal(its, mine[np.ix_(order, order)])
        assert not np.array_equal(its, mine)
    assert make("read").transfer() is None, "it knows none"


def test_a_decision_of_more_tokens_is_predicted_to_gain_more() -> None:
    """By the root of their number, as long as a gain is small beside what is left to learn."""
    states, outcomes = story([0, 1, 2, 3])
    predicted = []
    for tokens in (None, 1000.0, 4000.0):
        policy = make("gains", trust=1e-9)  # the same mix each time
        proposals(policy, states[:-1], outcomes[:-1])
        policy.propose(replace(states[-1], tokens=tokens))
        predicted.append(policy.metrics()["predicted"])
    assert predicted[0] == predicted[1]
    assert predicted[2] == pytest.approx(2 * predicted[1], rel=0.005)


def through_files(state: object) -> object:
    """As JSON and plain arrays keep it; anything else fails."""
    if isinstance(state, dict):
        return {key: through_files(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        assert state.dtype != object
        return state.copy()
    return json.loads(json.dumps(state))


def test_a_state_of_other_capabilities_is_refused() -> None:
    with pytest.raises(ValueError, match="chat"):
        make("gains").load_state_dict(
            make_policy("gains", PolicySettings(("a", "b"), 1.0)).state_dict() | {"names": ["chat"]}
        )


def test_the_mixes_of_those_that_do_not_learn() -> None:
    state = story([0, 1, 2, 3])[0][0]
    assert make("uniform").propose(state) == pytest.approx(np.full(4, 0.25))
    assert make("task_static").propose(state) == pytest.approx(R)
    assert make("one_hot").propose(state) == pytest.approx([0.5, 0.5, 0, 0])
    assert make("fixed").propose(state) == pytest.approx(MIX)


def test_kl_headroom_follows_divergence_and_its_fall() -> None:
    r, zero = np.full(2, 0.5), np.zeros(2)
    policy = make_policy("kl_headroom", PolicySettings(("a", "b"), 1.0))
    first = State(r, zero, zero, zero, 9.0, 0, np.array([0.6, 0.2]))
    assert policy.propose(first) == pytest.approx([0.75, 0.25])
    second = State(r, zero, zero, zero, 8.0, 1, np.array([0.5, 0.1 + 1e-9]))
    assert policy.propose(second) == pytest.approx([5 / 6, 1 / 6], abs=1e-6)  # the same fall
    third = State(r, zero, zero, zero, 7.0, 2, np.array([0.51, 0.05]))
    assert policy.propose(third) == pytest.approx(np.array([0.51 * 1e-3, 0.05 * 0.05]) / (0.51e-3 + 0.0025), abs=1e-6)
    assert policy.propose(State(r, zero, zero, zero, 7.0, 3)) == pytest.approx(r), "nothing is known of one of them"


def test_a_probe_between_decisions_is_a_measurement_of_its_own() -> None:
    states, outcomes = story([0, 1, 2, 3])
    once, again = make("gains"), make("gains")
    proposals(once, states[:2], outcomes[:2])
    again.observe(outcomes[0])
    fresh = Outcome(
        *[getattr(outcomes[1], f) for f in ("mix_planned", "mix_realised")],
        outcomes[1].before + 0.001,
        outcomes[1].after,
        outcomes[1].se,
        0.0,
    )
    again.observe(fresh)
    of = [policy._inner.model.cov[3, 0, 0, 0] for policy in (once, again)]
    assert of[1] < of[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"names": ("a", "a")}, "name of its own"),
        ({"mix": np.ones(3)}, "mix: expected 2"),
        ({"cost": np.ones(3)}, "cost: expected 2"),
        ({"floor": 0.6}, "floor=0"),
        ({"mix": np.array([0.5, 0.6])}, "add up to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, match: str) -> None:
    with pytest.raises(PacedError, match=match):
        make_policy("fixed", PolicySettings(**({"names": ("a", "b"), "decision_tokens": 1.0} | change)))


def test_names() -> None:
    with pytest.raises(PacedError, match="'gains'"):
        get_policy("gain")
    with pytest.raises(ValueError, match="already"):
        register_policy("gains")
