"""A sampler that draws only what was measured: what it asks for, and that its draws keep the expected gradient."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import Window
from paced_verl.pacing.sampler import PassRateSampler, shuffled
from paced_verl.pacing.window import WindowSampler

K = 4


class Run:
    """Prompts whose K samples come out as ``correct`` says, measured when they are about to be drawn."""

    def __init__(self, correct: list[int], batch: int = 4, ahead: int = 2, max_age: int | None = None, **settings):
        self.correct = np.array(correct)
        self.table = PassRateTable(len(correct))
        kernel = settings.pop("kernel", Kernel())
        self.sampler = WindowSampler(self.table, kernel, Window(batch, ahead, max_age), **settings)
        self.measured: list[int] = []
        self.batch = batch

    def measure(self, prompts: np.ndarray, step: int) -> None:
        self.table.observe(prompts, self.correct[prompts], np.full(len(prompts), K), step)
        self.sampler.update(prompts)
        self.measured += prompts.tolist()

    def step(self, step: int, left: int = 10**6) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of a batch, and their loss weights."""
        while len(missing := self.sampler.missing(step, self.batch)):
            self.measure(np.union1d(missing, self.sampler.ahead(step, left)), step)
        prompts = self.sampler.draw(self.batch)
        return prompts, self.sampler.loss_weights(prompts)


def order_of(size: int, epochs: int = 3) -> list[int]:
    return np.concatenate([shuffled(np.arange(size), size, (0, epoch)) for epoch in range(epochs)]).tolist()


MIXED = [0, 1, 2, 3, 4] * 20


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_nothing_is_drawn_that_was_not_measured_and_nothing_is_measured_twice(power: float) -> None:
    run = Run(MIXED, power=power)
    for step in range(1, 41):
        prompts, _ = run.step(step)
        assert set(prompts.tolist()) <= set(run.measured)
        assert (run.table.rates(prompts) % 1 > 0).all(), "and what weighs 0 is not drawn"
    assert len(run.measured) == len(set(run.measured)) == len(MIXED), "40 batches of 4 are more than one epoch"


def test_at_power_0_batches_are_the_epochs_own_order_as_if_all_had_been_measured_at_the_start() -> None:
    run, table = Run(MIXED), PassRateTable(len(MIXED))
    table.observe(np.arange(len(MIXED)), np.array(MIXED), np.full(len(MIXED), K), step=1)
    start = PassRateSampler(table, Kernel())
    for step in range(1, 41):
        assert run.step(step)[0].tolist() == start.draw(4).tolist()


def test_what_is_measured_is_the_window_and_no_more() -> None:
    run = Run(MIXED, batch=4, ahead=3, power=1.0)
    run.step(1)
    order = order_of(100)
    assert sorted(run.measured) == sorted(order[:12])
    assert run.sampler.missing(2, 4).tolist() == sorted(order[12:16]), "the window moves on by a batch"
    assert run.sampler.missing(2, 8).tolist() == sorted(order[12:20]), "two batches are drawn from two windows"
    assert run.sampler.ahead(1, 0).size == 0, "after the last draw nothing is measured"


def test_at_power_0_the_window_reaches_as_far_as_it_is_expected_to_take() -> None:
    run = Run(MIXED, batch=4, ahead=2)
    assert run.sampler.ahead(1, 100).tolist() == sorted(order_of(100)[:8]), "all may train, as far as is known"
    run.step(1)
    known = np.array([MIXED[prompt] for prompt in run.measured])
    share = np.mean((known > 0) & (known < K))
    order, expected, taken = order_of(100), 0.0, 0
    for taken, prompt in enumerate(order[run.sampler._position :], 1):  # noqa: B007
        expected += float(0 < MIXED[prompt] < K) if prompt in run.measured else share
        if expected >= 8 - 1e-9:
            break
    window = set(order[run.sampler._position :][:taken])
    assert set(run.sampler.ahead(1, 100).tolist()) == window - set(run.measured)
    assert len(run.sampler.ahead(1, 2)) < len(run.sampler.ahead(1, 100)), "near the end no more than will be drawn"


def test_zero_weights_that_may_be_drawn_take_no_more_than_the_batch() -> None:
    run = Run([0, 0, 0, 2] * 10, skip_zero_weight=False)
    prompts, weights = run.step(1)
    assert prompts.tolist() == order_of(40)[:4]
    assert ((weights == 0) == (run.correct[prompts] == 0)).all()
    assert len(run.measured) == 8


def test_a_pass_rate_is_measured_again_once_it_is_too_old() -> None:
    run = Run([2] * 8, batch=4, ahead=1, max_age=3)
    order, last, expected = order_of(8), {}, 0
    for step in range(1, 7):
        for prompt in order[4 * step - 4 : 4 * step]:
            if prompt not in last or step - last[prompt] > 3:
                last[prompt], expected = step, expected + 1
        run.step(step)
        assert len(run.measured) == expected
    assert 8 < expected < 24
    patient = Run([2] * 8, batch=4, ahead=1)
    for step in range(1, 60):
        patient.step(step)
    assert len(patient.measured) == 8


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, K), min_size=4, max_size=60).filter(lambda k: any(0 < x < K for x in k)),
    st.sampled_from([(0.5, 0.0), (1.0, 0.0), (1.0, 0.3), (2.0, 0.0)]),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_loss_weight_makes_up_for_the_window_that_a_prompt_was_drawn_from(
    correct: list[int], way: tuple[float, float], ahead: int, posterior: bool
) -> None:
    power, explore = way
    kernel = Kernel(estimate="posterior") if posterior else Kernel()
    run = Run(correct, batch=1, ahead=ahead, power=power, explore=explore, kernel=kernel)
    run.measure(np.arange(len(correct)), step=1)
    w, order = run.sampler.weights(), order_of(len(correct), epochs=5)
    for start in range(len(correct)):
        window = np.array(order[start : start + ahead])
        mass = w[window] ** power
        if not mass.any():
            continue  # passed over
        prompts = run.sampler.draw(1)
        place = window.tolist().index(prompts[0])
        probability = (1 - explore) * mass[place] / mass.sum() + explore / ahead
        expected = w[prompts] / (w.mean() * ahead * probability)
        assert run.sampler.loss_weights(prompts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_with_known_weights_a_finite_window_leaves_no_bias(power: float, ahead: int) -> None:
    """Over epochs the mean of the batches' expected gradients is (1/N) Σ w̃_i g_i, by hand, window by window."""
    batch, epochs, w = 2, 300, np.array([0.0, 0.1, 0.2, 0.25, 0.0, 0.19, 0.25, 0.05, 0.0, 0.0])
    gradient = np.random.default_rng(0).normal(size=(len(w), 2))
    order, total = order_of(len(w), epochs + 2), np.zeros(2)
    for start in range(0, epochs * len(w), batch):
        window = np.array(order[start : start + ahead * batch])
        mass = w[window] ** power
        if mass.any():
            q = mass / mass.sum()
            total += (q * w[window] / (w.mean() * len(window) * np.maximum(q, 1e-300))) @ gradient[window]
    batches = epochs * len(w) // batch
    np.testing.assert_allclose(total / batches, w / w.mean() @ gradient / len(w), atol=5 * ahead / batches)


def test_draws_follow_q_and_come_as_often_as_it_rounds_to() -> None:
    run = Run([0, 1, 2, 2, 2, 1, 0, 3] * 4, batch=8, ahead=2, power=1.0)
    run.measure(np.arange(32), step=1)
    counts, rounds = np.zeros(32), 4000
    window = np.array(order_of(32)[:16])
    mass = run.sampler.weights(window)
    expected = 8 * mass / mass.sum()
    for seed in range(rounds):
        run.sampler._rng = np.random.default_rng(seed)
        run.sampler._epoch = run.sampler._position = 0
        drawn = np.bincount(run.sampler.draw(8), minlength=32)
        assert (np.abs(drawn[window] - expected) < 1).all(), "a candidate comes ⌊B q⌋ or ⌈B q⌉ times"
        counts += drawn
    np.testing.assert_allclose(counts[window] / rounds, expected, atol=4 * 0.5 / np.sqrt(rounds))


def test_what_the_first_windows_do_not_know_of_the_mean_errs_by_less_than_they_grow() -> None:
    """The mean weight is that of what was measured so far: over many data sets, its error falls as 1/√measured."""
    error = {1: [], 16: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        run = Run(rng.binomial(K, rng.beta(1, 1, 4096)).tolist(), batch=16, ahead=2, power=1.0, seed=seed)
        mean = (run.correct / K * (1 - run.correct / K)).mean()
        for step in range(1, 17):
            run.step(step)
            if step in error:
                error[step].append(run.sampler.mean_weight / mean - 1)
    root = {step: np.sqrt(np.mean(np.square(errors))) for step, errors in error.items()}
    measured = {1: 32, 16: 32 + 15 * 16}
    for step, n in measured.items():
        expected = 0.094 / 0.125 / np.sqrt(n)  # sd over mean of p̂(1−p̂) for K = 4 and uniform rates
        assert root[step] == pytest.approx(expected, rel=0.35)
        assert abs(np.mean(error[step])) < 3 * expected / np.sqrt(60), "and has no direction"


def test_at_power_0_loss_weights_have_mean_one_although_most_prompts_are_unknown() -> None:
    """Zero-weight candidates are passed over, so w̃ is multiplied by the share of those that train."""
    means = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        run = Run(rng.choice(K + 1, 1000, p=[0.4, 0.1, 0.1, 0.1, 0.3]).tolist(), batch=32, seed=seed)
        weights = [run.step(step)[1] for step in range(1, 6)]
        means.append(np.mean(weights[1:]))
    assert np.mean(means) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("killed_after", [1, 3, 7])
def test_a_state_through_json_goes_on_as_if_undisturbed(power: float, killed_after: int) -> None:
    undisturbed, killed = Run(MIXED, power=power, seed=3), Run(MIXED, power=power, seed=3)
    expected = [undisturbed.step(step) for step in range(1, 15)]
    for step in range(1, killed_after + 1):
        killed.step(step)
    state = json.loads(json.dumps(killed.sampler.state_dict()))
    resumed = Run(MIXED, power=power, seed=3)
    resumed.table = killed.table
    resumed.sampler.refresh(table=killed.table)
    resumed.sampler.load_state_dict(state)
    for step, (prompts, weights) in enumerate(expected[killed_after:], killed_after + 1):
        again = resumed.step(step)
        assert again[0].tolist() == prompts.tolist()
        np.testing.assert_array_equal(again[1], weights)


def test_a_batch_that_was_drawn_and_not_handed_out_is_kept() -> None:
    run = Run(MIXED, power=1.0)
    run.measure(np.arange(len(MIXED)), step=1)
    whole = Run(MIXED, power=1.0)
    whole.measure(np.arange(len(MIXED)), step=1)
    drawn = run.sampler.draw(3)
    run.sampler.loss_weights(drawn)
    state = json.loads(json.dumps(run.sampler.state_dict()))
    run.sampler.load_state_dict(state)
    assert [*drawn, *run.sampler.draw(5)] == whole.sampler.draw(8).tolist()


def test_a_draw_whose_loss_weights_nobody_asked_for_is_forgotten_with_a_restored_state() -> None:
    run, later = Run(MIXED, power=1.0), Run(MIXED, power=1.0)
    later.step(1)
    state = json.loads(json.dumps(later.sampler.state_dict()))
    run.sampler.draw(4)
    run.sampler.load_state_dict(state)
    drawn = run.sampler.draw(4)
    assert len(run.sampler.loss_weights(drawn)) == 4


def test_what_is_left_of_a_batch_needs_no_further_window() -> None:
    run = Run(MIXED, power=1.0)
    run.step(1)
    run.measure(run.sampler.missing(2, 4), step=2)
    run.sampler.draw(2)
    assert run.sampler.missing(2, 2).size == 0


def test_another_window_is_another_run() -> None:
    state = Run(MIXED, ahead=3).sampler.state_dict()
    with pytest.raises(ValueError, match="ahead is 3, here 2"):
        Run(MIXED, ahead=2).sampler.load_state_dict(state)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_data_set_that_nothing_can_be_learned_from_ends_the_run_once_all_is_measured(power: float) -> None:
    run = Run([0, K] * 10, power=power)
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        run.step(1)
    assert sorted(run.measured) == list(range(20))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_frontier_far_off_is_found(power: float) -> None:
    correct = [0] * 200
    correct[order_of(200)[150]] = 2
    run = Run(correct, power=power)
    prompts, weights = run.step(1)
    assert set(prompts.tolist()) == {order_of(200)[150]}
    assert (weights > 0).all()


def test_loss_weights_are_those_of_the_draw() -> None:
    run = Run(MIXED, power=1.0)
    prompts, _ = run.step(1)
    with pytest.raises(ValueError, match="ask for them once"):
        run.sampler.loss_weights(prompts)


def test_uniform_exploration_needs_a_power() -> None:
    with pytest.raises(ValueError, match=r"explore=0\.1 needs power > 0"):
        Run(MIXED, explore=0.1)


def test_a_candidate_that_could_not_be_measured_weighs_the_mean_and_is_not_asked_for_again() -> None:
    run = Run(MIXED, power=0.0)
    run.step(1)
    lost = run.sampler.missing(2, 8)
    run.table.last_seen[lost] = 2  # measured in vain
    assert run.sampler.missing(2, 8).size == 0
    assert run.sampler.weights(lost) == pytest.approx([run.sampler.mean_weight] * len(lost))


def test_metrics_leave_out_what_there_is_not() -> None:
    run = Run(MIXED)
    run.step(1)
    metrics = run.sampler.metrics(1)
    assert "paced/sampler/entropy" not in metrics
    known = run.correct[run.measured]
    assert metrics["paced/weight/zero_share"] == pytest.approx(np.mean((known == 0) | (known == K)))
    assert metrics["paced/pass_rate/unseen"] == pytest.approx(1 - len(known) / len(MIXED))
