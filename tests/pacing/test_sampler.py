import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler, shuffled

WAYS = [(0.0, 0.0, True), (0.0, 0.0, False), (0.0, 0.2, True), (0.5, 0.0, True), (1.0, 0.1, True), (0.3, 1.0, True)]
"""(power, explore, skip_zero_weight)"""


def table_of(successes, trials=8, unseen=()):
    table = PassRateTable(len(successes))
    samples = np.full(len(successes), trials)
    samples[list(unseen)] = 0
    table.observe(np.arange(len(successes)), np.minimum(successes, samples), samples, step=0)
    return table


def random_table(size, seed=0):
    """A third of the prompts weighs 0 and a few are unseen."""
    rng = np.random.default_rng(seed)
    return table_of(rng.binomial(8, rng.beta(0.5, 0.5, size)), unseen=range(0, size, 17))


def sampler_of(table, power=0.0, explore=0.0, skip=True, **settings):
    return PassRateSampler(table, Kernel(), power=power, explore=explore, skip_zero_weight=skip, **settings)


def brute_force(table, power, explore, skip):
    """w and q as written in the class docstring, prompt by prompt."""
    rates = [k / n if n else None for k, n in zip(table.successes.tolist(), table.samples.tolist(), strict=True)]
    known = [p * (1 - p) for p in rates if p is not None]
    fill = sum(known) / len(known) if sum(known) else 1.0
    w = [fill if p is None else p * (1 - p) for p in rates]
    mass = [x**power if power else float(x > 0 or not skip) for x in w]
    return np.array(w), np.array([(1 - explore) * m / sum(mass) + explore / len(w) for m in mass])


counts = st.lists(st.integers(0, 9), min_size=1, max_size=600).filter(lambda k: any(x not in (0, 8) for x in k))


def table_with_unseen(k):
    """9 stands for a prompt without samples."""
    return table_of(k, unseen=[i for i, x in enumerate(k) if x == 9])


@settings(deadline=None, max_examples=50)
@given(counts, st.sampled_from(WAYS))
def test_the_expected_gradient_is_the_papers_for_every_setting(k, way):
    """Σ_i q_i · loss_weight_i · g_i = (1/N) Σ w̃_i g_i, for arbitrary gradients g."""
    table = table_with_unseen(k)
    sampler = sampler_of(table, *way)
    w, q = brute_force(table, *way)
    prompts = np.arange(len(k))
    np.testing.assert_allclose(sampler.weights(), w, rtol=1e-6)
    np.testing.assert_allclose(sampler.probabilities(), q, rtol=1e-6)
    assert q.sum() == pytest.approx(1)

    gradient = np.random.default_rng(0).normal(size=(len(k), 3))
    loss_weights = sampler.loss_weights(prompts)
    assert loss_weights.dtype == np.float32
    np.testing.assert_array_equal(loss_weights == 0, w == 0)
    np.testing.assert_allclose((q * loss_weights) @ gradient, w / w.mean() @ gradient / len(k), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(counts)
def test_under_uniform_sampling_weights_have_mean_one(k):
    """w̃ has mean 1 over all prompts, zeros included; so a mean over an epoch of it leaves the loss's scale alone."""
    sampler = sampler_of(table_with_unseen(k), skip=False)
    assert sampler.loss_weights(np.arange(len(k))).mean(dtype=float) == pytest.approx(1, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5), st.booleans())
def test_an_epoch_has_every_prompt_of_positive_weight_once(size, seed, zeros, skip):
    k = np.full(size, 4)
    k[1 : 1 + zeros] = 0
    sampler = sampler_of(table_of(k), skip=skip, seed=seed)
    expected = np.flatnonzero(k) if skip else np.arange(size)
    first, second = sampler.draw(len(expected)), sampler.draw(len(expected))
    np.testing.assert_array_equal(np.sort(first), expected)
    np.testing.assert_array_equal(np.sort(second), expected)
    assert size < 100 or (first != second).any()


def test_orders_differ_by_seed_and_epoch_and_look_uniform():
    size, epochs = 6, 3000
    orders = np.array([shuffled(np.arange(size), size, (0, epoch)) for epoch in range(epochs)])
    places = np.array([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    assert stats.chisquare(places.ravel(), ddof=2 * size - 2).pvalue > 1e-3
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size**2).reshape(size, size)
    assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-3
    assert (shuffled(np.arange(1000), 1000, (0, 0)) != shuffled(np.arange(1000), 1000, (1, 0))).any()


def test_an_order_has_no_trace_of_the_index():
    """Neighbours in an epoch are unrelated: neither the values nor their differences correlate with the position."""
    size = 100_000
    order = shuffled(np.arange(size), size, (3, 1)).astype(float)
    for lag in (1, 2, 256):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 4 / math.sqrt(size)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / math.sqrt(size)


@pytest.mark.parametrize(("power", "explore"), [(1.0, 0.0), (0.5, 0.0), (0.7, 0.25), (1.0, 1.0)])
def test_draws_have_the_promised_frequencies(power, explore):
    table = random_table(700)  # three blocks, the last one not full
    draws, (_, q) = 80_000, brute_force(table, power, explore, True)
    sampler = sampler_of(table, power, explore, seed=1)
    observed = sum(np.bincount(sampler.draw(1000), minlength=700) for _ in range(draws // 1000))
    assert np.all(observed[q == 0] == 0)
    assert stats.chisquare(observed[q > 0], draws * q[q > 0]).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_ends_of_the_random_numbers_fall_on_prompts_of_positive_weight(power):
    k = np.zeros(900, int)
    k[[300, 301, 599]] = 4, 1, 3
    ends = sampler_of(table_of(k), power)._invert(np.array([0.0, 1 - 2**-53]))
    np.testing.assert_array_equal(ends, [300, 599])


def test_exploring_measures_prompts_of_weight_zero_again():
    table = random_table(700)
    draws, (w, q) = 100_000, brute_force(table, 0.0, 0.3, True)
    observed = np.bincount(sampler_of(table, explore=0.3).draw(draws), minlength=700)
    dead = w == 0
    assert stats.chisquare(observed[dead], np.full(dead.sum(), observed[dead].sum() / dead.sum())).pvalue > 1e-3
    expected = draws * q[dead].sum()
    assert abs(observed[dead].sum() - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("way", WAYS)
def test_one_large_draw_is_many_small_ones(way):
    table = random_table(3000)
    large, small = sampler_of(table, *way), sampler_of(table, *way)
    sizes = [1, 5, 1500, 0, 2, 2500]
    np.testing.assert_array_equal(large.draw(sum(sizes)), np.concatenate([small.draw(n) for n in sizes]))


@pytest.mark.parametrize("way", WAYS)
def test_updates_add_up_to_a_refresh(way):
    """No drift: after many updates everything equals what a new sampler computes from the table."""
    table, rng = random_table(900), np.random.default_rng(5)
    sampler = sampler_of(table, *way)
    for step in range(200):
        prompts = rng.integers(0, 900, 7)
        table.observe(prompts, rng.integers(0, 5, 7), np.full(7, 4), step)
        sampler.update(prompts)
    fresh = sampler_of(table, *way)
    np.testing.assert_array_equal(sampler.weights(), fresh.weights())
    np.testing.assert_array_equal(sampler.probabilities(), fresh.probabilities())


def test_an_update_counts_for_the_next_prompt():
    table = table_of([4, 4, 4])
    table.decay = 0  # the latest counts alone
    for power in (0.0, 1.0):
        sampler = sampler_of(table, power)
        prompts = iter(sampler)
        next(prompts)
        table.observe(np.arange(3), [0, 4, 8], [8, 8, 8], step=1)
        sampler.update(np.arange(3))
        assert {int(i) for i in sampler.draw(20)} == {1}
        table.observe(np.arange(3), [4, 4, 4], [8, 8, 8], step=2)


def test_refresh_takes_a_new_kernel_and_table():
    sampler = sampler_of(table_of([2, 4, 8]))
    sampler.refresh(Kernel(alpha=2), table_of([4, 8, 2]))
    np.testing.assert_allclose(sampler.weights(), [1 / 8, 0, 3 / 64])
    with pytest.raises(ValueError, match="the table has 2 prompts, the sampler 3"):
        sampler.refresh(table=table_of([1, 2]))


def test_nothing_to_learn_is_an_error_with_a_way_out():
    with pytest.raises(ValueError, match=r"every prompt has weight 0.*estimate: posterior"):
        sampler_of(table_of([0, 8]))
    table = table_of([4, 8])
    sampler = sampler_of(table, explore=0.5)
    table.decay = 0  # the latest counts alone
    table.observe(np.arange(2), [0, 8], [8, 8], step=1)
    sampler.update(np.arange(2))
    np.testing.assert_array_equal(sampler.loss_weights(np.arange(2)), [0, 0])
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        sampler.draw(1)


def test_unseen_prompts_get_the_mean_and_one_if_all_others_weigh_nothing():
    np.testing.assert_allclose(sampler_of(table_of([4, 8, 0], unseen=[2])).weights(), [1 / 4, 0, 1 / 8])
    np.testing.assert_allclose(sampler_of(table_of([0, 8, 0], unseen=[2])).weights(), [0, 0, 1])
    np.testing.assert_allclose(sampler_of(PassRateTable(3)).weights(), [1, 1, 1])
    posterior = PassRateSampler(table_of([4, 0], unseen=[1]), Kernel(estimate="posterior"))
    assert posterior.weights(np.array([1])) == pytest.approx(1 / 6)  # E[p(1−p)] under the uniform prior


def test_a_prompt_costs_sixteen_bytes_with_its_table():
    size = 256 * 1000
    sampler = sampler_of(random_table(size), power=0.5)
    sampler.draw(100)
    arrays = [*vars(sampler.table).values(), *vars(sampler).values()]
    assert 16 * size <= sum(x.nbytes for x in arrays if isinstance(x, np.ndarray)) < 16.3 * size
    assert len(pickle.dumps(sampler.state_dict())) < 1000


@pytest.mark.parametrize("way", WAYS)
def test_metrics_are_what_their_names_say(way):
    table = random_table(700)
    w, q = brute_force(table, *way)
    rates = table.rates()
    seen = ~np.isnan(rates)
    rates, known = rates[seen], w[seen]
    assert sampler_of(table, *way).metrics(step=7) == pytest.approx(
        {
            "paced/weight/mean": w.mean(),
            "paced/weight/max": known.max() / w.mean(),
            "paced/weight/zero_share": np.mean(known == 0),
            "paced/weight/ess": known.sum() ** 2 / (len(known) * (known**2).sum()),
            "paced/sampler/entropy": stats.entropy(q) / math.log(700),
            "paced/sampler/staleness": 7,
            "paced/pass_rate/mean": rates.mean(),
            "paced/pass_rate/low": np.mean(rates < 0.2),
            "paced/pass_rate/frontier": np.mean((rates >= 0.2) & (rates <= 0.8)),
            "paced/pass_rate/high": np.mean(rates > 0.8),
            "paced/pass_rate/unseen": 1 - len(known) / 700,
        },
        rel=1e-5,
    )


def train(loader, sampler, table, batches, log):
    """Take batches as a trainer does: across passes of the loader, with pass rates that move after every batch."""
    iterator = iter(loader)
    for step in range(batches):
        try:
            batch = next(iterator)
        except StopIteration:
            iterator = iter(loader)
            batch = next(iterator)
        prompts = np.array(batch)
        log.append(prompts.tolist())
        table.observe(prompts, prompts % 5, np.full(len(prompts), 5), step)
        sampler.update(prompts)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("epoch_size", [None, 28])
def test_a_restored_loader_goes_on_as_if_undisturbed(tmp_path, way, epoch_size):
    """torchdata's StatefulDataLoader, cut after every batch of more than two passes: 7 batches and, of 30 prompts, a
    remainder that drop_last discards; 28 prompts a pass end on a batch."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def start():
        table = random_table(30)
        sampler = sampler_of(table, *way, seed=3, epoch_size=epoch_size)
        loader = stateful.StatefulDataLoader(
            list(range(30)), batch_size=4, sampler=sampler, num_workers=0, drop_last=True, collate_fn=list
        )
        return table, sampler, loader

    table, sampler, loader = start()
    undisturbed = []
    train(loader, sampler, table, 20, undisturbed)

    for cut in range(17):
        table, sampler, loader = start()
        log = []
        train(loader, sampler, table, cut, log)
        table.save(tmp_path / "rates.parquet")
        state = pickle.dumps(loader.state_dict())

        table, sampler, loader = start()
        table = PassRateTable.load(tmp_path / "rates.parquet")
        sampler.refresh(table=table)
        loader.load_state_dict(pickle.loads(state))
        train(loader, sampler, table, 20 - cut, log)
        assert log == undisturbed, f"cut after {cut} batches"


def test_a_pass_that_is_a_multiple_of_the_batch_loses_no_prompt():
    """30 prompts, batches of 4, passes of 28: the epoch goes on in the next pass."""
    sampler = sampler_of(table_of([4] * 30), epoch_size=28)
    passes = [list(sampler) for _ in range(15)]
    assert [len(prompts) for prompts in passes] == [28] * 15
    np.testing.assert_array_equal(np.bincount(np.concatenate(passes)), np.full(30, 14))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"table": table_of([4] * 5)}, "size is 4, here 5"),
        ({"seed": 1}, "seed is 0, here 1"),
        ({"power": 1.0}, r"power is 0\.0, here 1\.0"),
        ({"explore": 0.1}, r"explore is 0\.0, here 0\.1"),
        ({"skip_zero_weight": False}, "skip_zero_weight is True, here False"),
        ({"epoch_size": 3}, "epoch_size is 4, here 3"),
        ({"kernel": Kernel("uniform")}, "'name': 'beta'.*here.*'name': 'uniform'"),
        ({"kernel": Kernel(alpha=2.0)}, r"'alpha': 1\.0.*here.*'alpha': 2\.0"),
        ({"kernel": Kernel(estimate="posterior", prior=(0.5, 0.6))}, r"here.*'prior': \[0\.5, 0\.6\]"),
    ],
)
def test_the_state_of_another_run_is_refused(other, message):
    state = PassRateSampler(table_of([4] * 4), Kernel()).state_dict()
    sampler = PassRateSampler(**{"table": table_of([4] * 4), "kernel": Kernel(), **other})
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(state)


def test_a_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match="lacks epoch, epoch_size"):
        sampler_of(table_of([4])).load_state_dict({"yielded": 3})


@pytest.mark.parametrize(
    "setting", [{"power": -0.1}, {"power": math.nan}, {"explore": 1.1}, {"seed": -1}, {"epoch_size": 0}]
)
def test_bad_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"sampler: {next(iter(setting))} must"):
        PassRateSampler(table_of([4]), Kernel(), **setting)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_prompts_is_as_likely_as_any_other(size):
    counts = {}
    for epoch in range(200 * math.factorial(size)):
        order = tuple(shuffled(np.arange(size), size, (7, epoch)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == math.factorial(size)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 5, 1024, 1025, 3000])
def test_a_part_of_an_order_is_a_part_of_the_same_permutation(size):
    whole = shuffled(np.arange(size), size, (2, 3))
    np.testing.assert_array_equal(np.sort(whole), np.arange(size))
    np.testing.assert_array_equal(shuffled(np.arange(size // 2, size), size, (2, 3)), whole[size // 2 :])


def test_the_mean_weight_is_unknown_until_a_prompt_of_positive_weight_is_known():
    assert sampler_of(PassRateTable(3)).mean_weight is None
    assert sampler_of(table_of([0, 8, 0], unseen=[2])).mean_weight is None
    assert sampler_of(table_of([4, 8, 0], unseen=[2])).mean_weight == pytest.approx(1 / 8)
