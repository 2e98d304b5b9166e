import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.mix import MixSampler, stream_seed
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.reliability import Reliability
from paced_verl.pacing.sampler import PassRateSampler
from tests.pacing.test_quotas import within
from tests.pacing.test_sampler import WAYS, brute_force, random_table, sampler_of, table_of

NAMES = ("code", "maths", "words")
MIX = (0.5, 0.3, 0.2)


def groups_of(size, capabilities=3, seed=0):
    """Interleaved and of different sizes, as the rows of a shuffled file are; everyone has a prompt."""
    shares = np.arange(1, capabilities + 1) / np.arange(1, capabilities + 1).sum()
    groups = np.random.default_rng(seed).choice(capabilities, size, p=shares).astype(np.int16)
    groups[:capabilities] = np.arange(capabilities)
    return groups


def mix_of(table, power=0.0, explore=0.0, skip=True, *, groups=None, names=NAMES, mix=MIX, **settings):
    groups = groups_of(len(table), len(names)) if groups is None else np.asarray(groups, np.int16)
    given = {"power": power, "explore": explore, "skip_zero_weight": skip, **settings}
    return MixSampler(table, Kernel(), groups=groups, names=names, mix=mix, **given)


def some_of(table, rows):
    """A table of these prompts only."""
    part = PassRateTable(len(rows), table.decay)
    part.successes[:], part.samples[:], part.last_seen[:] = (
        table.successes[rows],
        table.samples[rows],
        table.last_seen[rows],
    )
    return part


counts = st.lists(st.integers(0, 9), min_size=4, max_size=400)
"""Successes of 8; 9 stands for a prompt without samples."""


def weighs(k):
    return any(x not in (0, 8) for x in k)


@settings(deadline=None, max_examples=60)
@given(st.lists(counts.filter(weighs), min_size=1, max_size=4), st.sampled_from(WAYS), st.data())
def test_the_expected_gradient_is_the_mix_of_the_capabilities_own(parts, way, data):
    """Σ_c mix_c Σ_{i in c} q_{i|c} · loss_weight_i · g_i = Σ_c mix_c (1/N_c) Σ w̃_i g_i, prompt by prompt."""
    raw = np.array(data.draw(st.lists(st.floats(0.05, 1), min_size=len(parts), max_size=len(parts))))
    mix, order = raw / raw.sum(), np.random.default_rng(0).permutation(sum(map(len, parts)))
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    k = np.concatenate(parts)[order]
    table = table_of(k, unseen=np.flatnonzero(k == 9))
    sampler = mix_of(table, *way, groups=groups, names=[f"c{c}" for c in range(len(parts))], mix=mix)

    gradient = np.random.default_rng(1).normal(size=(len(k), 3))
    loss_weights = sampler.loss_weights(np.arange(len(k)))
    for c, share in enumerate(mix):
        rows = np.flatnonzero(groups == c)
        w, q = brute_force(some_of(table, rows), *way)
        expected = share * (w / w.mean()) @ gradient[rows] / len(rows)
        got = share * (q * loss_weights[rows]) @ gradient[rows]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert np.sum(q * loss_weights[rows]) == pytest.approx(1, rel=1e-5)  # w̃ has mean 1 inside the capability


@pytest.mark.parametrize("way", [(0.0, 0.0, True), (0.0, 0.2, True), (1.0, 0.1, True)])
def test_draws_have_the_promised_frequencies_within_a_capability(way):
    table, groups = random_table(600), groups_of(600)
    sampler, draws = mix_of(table, *way, groups=groups, seed=1), 60_000
    seen = np.bincount(sampler.draw(draws), minlength=600)
    for c, share in enumerate(MIX):
        rows = np.flatnonzero(groups == c)
        assert seen[rows].sum() == pytest.approx(draws * share, abs=1)
        _, q = brute_force(some_of(table, rows), *way)
        assert not seen[rows[q == 0]].any()
        assert stats.chisquare(seen[rows[q > 0]], seen[rows].sum() * q[q > 0]).pvalue > 1e-3


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 8), st.data())
def test_shares_are_exact_at_every_prompt_that_a_loader_draws(capabilities, data):
    raw = np.array(data.draw(st.lists(st.integers(0, 9), min_size=capabilities, max_size=capabilities)), float)
    raw[0] += 1
    mix, names = raw / raw.sum(), [f"c{c}" for c in range(capabilities)]
    sampler = mix_of(table_of([4] * 40), groups=groups_of(40, capabilities), names=names, mix=mix)
    drawn = sampler.groups[[prompt for _ in range(4) for prompt in iter(sampler)]]
    assert len(drawn) == 160
    owed = np.arange(1, 161)[:, None] * mix - np.cumsum(np.eye(capabilities)[drawn], axis=0)
    assert np.abs(owed).max() <= within(capabilities) + 1e-9
    np.testing.assert_allclose(sampler.owed, owed[-1], atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_one_capability_is_no_capability(way):
    """Draws, loss weights and the random state are PassRateSampler's, bit for bit, while pass rates move."""
    tables = [random_table(700), random_table(700)]
    alone = sampler_of(tables[0], *way, seed=5)
    mixed = mix_of(tables[1], *way, groups=np.zeros(700), names=["all"], mix=[1.0], seed=5)
    for step in range(20):
        prompts = alone.draw(37)
        np.testing.assert_array_equal(mixed.draw(37), prompts)
        np.testing.assert_array_equal(mixed.loss_weights(prompts), alone.loss_weights(prompts))
        for table, sampler in zip(tables, (alone, mixed), strict=True):
            table.observe(prompts, prompts % 9, np.full(37, 8), step)
            sampler.update(prompts)
        assert mixed.mean_weight == alone.mean_weight
        metrics = mixed.metrics(step)
        assert {key: metrics[key] for key in alone.metrics(step)} == pytest.approx(alone.metrics(step))
    state = alone.state_dict()
    assert mixed.state_dict()["parts"] == [state]


@pytest.mark.parametrize("way", [(0.0, 0.0, True), (0.5, 0.1, True)])
def test_a_capabilitys_draws_are_its_own(way):
    """What it draws, in which order, is that of a sampler over its prompts alone, whatever the mixes are."""
    table, groups = random_table(600), groups_of(600)
    drawn = []
    for mixes in ([MIX] * 3, [(0.1, 0.1, 0.8), (0.6, 0.4, 0.0), (0.2, 0.5, 0.3)]):
        sampler, order = mix_of(table, *way, groups=groups), []
        for mix in mixes:
            sampler.set_mix(mix)
            order.append(sampler.draw(200))
        drawn.append(np.concatenate(order))
    for c in range(3):
        rows = np.flatnonzero(groups == c)
        first, second = (order[groups[order] == c] for order in drawn)
        alone = sampler_of(some_of(table, rows), *way, seed=stream_seed(0, c))
        longest = max(len(first), len(second))
        expected = rows[alone.draw(longest)]
        np.testing.assert_array_equal(first, expected[: len(first)])
        np.testing.assert_array_equal(second, expected[: len(second)])


def test_no_two_streams_are_the_same():
    """Of capabilities, and of runs with seeds that follow each other."""
    seeds = [stream_seed(seed, group) for seed in range(50) for group in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert stream_seed(7, 0) == 7
    table = table_of([4] * 40)
    sampler = mix_of(table, groups=np.arange(40) % 2, names=["a", "b"], mix=[0.5, 0.5])
    orders = sampler.draw(40).reshape(20, 2) // 2
    assert len({tuple(order) for order in np.sort(orders.T, axis=1).tolist()}) == 1  # 20 prompts of either
    assert (orders[:, 0] != orders[:, 1]).any()


def test_a_change_of_the_mix_keeps_what_is_owed():
    sampler = mix_of(table_of([4] * 60))
    before = sampler.draw(7)
    owed = 7 * np.array(MIX) - np.bincount(sampler.groups[before], minlength=3)
    np.testing.assert_allclose(sampler.owed, owed)
    sampler.set_mix([0.2, 0.2, 0.6])
    np.testing.assert_allclose(sampler.owed, owed)
    after = np.bincount(sampler.groups[sampler.draw(1000)], minlength=3)
    np.testing.assert_allclose(after, owed + np.array([200, 200, 600]), atol=1)


def three(successes):
    """Three capabilities of two prompts each."""
    return table_of(successes), [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_capability_without_weight_gives_its_share_away_until_it_weighs_again(power):
    table, groups = three([4, 4, 0, 8, 4, 8])
    table.decay = 0  # the latest counts alone
    sampler = mix_of(table, power, groups=groups)
    drawn = sampler.groups[sampler.draw(700)]
    np.testing.assert_array_equal(np.bincount(drawn, minlength=3), [500, 0, 200])  # .5 : .2
    assert sampler.without_weight == ("maths",)
    assert sampler.given_away == pytest.approx(0.3)
    metrics = sampler.metrics(1)
    assert metrics["paced/capability/given_away"] == pytest.approx(0.3)
    assert metrics["paced/capability/maths/planned"] == 0.3
    assert metrics["paced/capability/maths/realised"] == 0

    table.observe([2], [4], [8], step=1)
    sampler.update([2])
    np.testing.assert_array_equal(np.bincount(sampler.groups[sampler.draw(1000)]), [500, 300, 200])
    assert sampler.without_weight == ()
    assert sampler.given_away == 0

    table.observe([0, 1], [0, 8], [8, 8], step=2)
    sampler.refresh()
    np.testing.assert_array_equal(np.bincount(sampler.groups[sampler.draw(500)]), [0, 300, 200])


def test_nothing_to_learn_is_the_samplers_error():
    table, groups = three([0, 8, 8, 0, 0, 0])
    with pytest.raises(ValueError, match=r"every prompt has weight 0.*estimate: posterior"):
        mix_of(table, groups=groups)
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        mix_of(table, groups=np.zeros(6), names=["all"], mix=[1])

    table, groups = three([4, 4, 4, 4, 4, 4])
    table.decay = 0
    sampler = mix_of(table, groups=groups)
    table.observe(np.arange(6), [0] * 6, [8] * 6, step=1)
    sampler.update(np.arange(6))
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        sampler.draw(1)
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        sampler.refresh()


def test_a_mix_of_capabilities_without_weight_alone_is_an_error():
    table, groups = three([4, 4, 0, 8, 4, 8])
    sampler = mix_of(table, groups=groups)
    sampler.set_mix([0, 1, 0])
    with pytest.raises(ValueError, match=r"every prompt of maths \(the mix\) has weight 0"):
        sampler.draw(1)
    sampler.set_mix([0.1, 0.9, 0])
    np.testing.assert_array_equal(np.unique(sampler.groups[sampler.draw(50)]), [0])


@pytest.mark.parametrize("way", WAYS)
def test_updates_add_up_to_a_refresh(way):
    table, rng = random_table(900), np.random.default_rng(5)
    sampler = mix_of(table, *way)
    for step in range(100):
        prompts = rng.integers(0, 900, 7)
        table.observe(prompts, rng.integers(0, 5, 7), np.full(7, 4), step)
        sampler.update(prompts)
    every = np.arange(900)
    np.testing.assert_array_equal(sampler.loss_weights(every), mix_of(table, *way).loss_weights(every))


def test_refresh_takes_a_new_kernel_and_table():
    table, groups = three([4, 4, 4, 4, 4, 4])
    sampler = mix_of(table, groups=groups)
    new, _ = three([2, 4, 4, 2, 8, 4])
    sampler.refresh(Kernel(alpha=2), new)
    fresh = MixSampler(new, Kernel(alpha=2), groups=np.array(groups, np.int16), names=NAMES, mix=MIX)
    every = np.arange(6)
    np.testing.assert_array_equal(sampler.loss_weights(every), fresh.loss_weights(every))
    with pytest.raises(ValueError, match="the table has 2 prompts, the sampler 6"):
        sampler.refresh(table=table_of([1, 2]))


def test_the_teachers_pass_rates_are_those_of_the_same_prompts():
    table, groups = table_of([4] * 6), [0, 1, 0, 1, 0, 1]
    teacher = Reliability(table_of([0, 8, 8, 8, 8, 0]), "gate")
    sampler = mix_of(table, groups=groups, names=["a", "b"], mix=[0.5, 0.5], teacher=teacher)
    np.testing.assert_array_equal(np.unique(sampler.draw(40)), [1, 2, 3, 4])


def test_metrics_of_each_capability_and_of_all():
    table, groups = random_table(600), groups_of(600)
    sampler = mix_of(table, 0.5, 0.1, groups=groups)
    drawn = np.bincount(groups[sampler.draw(77)], minlength=3)
    metrics, rates = sampler.metrics(step=7), table.rates()
    objective = np.zeros(600)
    q = np.zeros(600)
    w = np.zeros(600)
    largest = 0.0
    for c, name in enumerate(NAMES):
        rows = np.flatnonzero(groups == c)
        part = some_of(table, rows)
        known = part.samples > 0
        w[rows], of_draws = brute_force(part, 0.5, 0.1, True)
        q[rows] = MIX[c] * of_draws
        objective[rows[known]] = MIX[c] * w[rows][known] / w[rows][known].sum()
        largest = max(largest, w[rows][known].max() / w[rows].mean())
        assert metrics[f"paced/capability/{name}/planned"] == pytest.approx(MIX[c])
        assert metrics[f"paced/capability/{name}/realised"] == pytest.approx(drawn[c] / 77)
        assert metrics[f"paced/capability/{name}/pass_rate"] == pytest.approx(np.nanmean(rates[rows]), rel=1e-6)
    known = table.samples > 0
    expected = {
        "paced/weight/mean": w.mean(),
        "paced/weight/max": largest,
        "paced/weight/zero_share": np.mean(w[known] == 0),
        "paced/weight/ess": 1 / (known.sum() * np.sum(objective**2)),
        "paced/sampler/entropy": stats.entropy(q) / math.log(600),
        "paced/sampler/staleness": 7,
        "paced/pass_rate/mean": np.nanmean(rates),
        "paced/capability/given_away": 0,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics.keys() >= sampler_of(table).metrics(7).keys()


def test_before_anything_is_known_and_where_a_capability_is_left_out_metrics_are_numbers_or_nan():
    sampler = mix_of(PassRateTable(30))
    assert sampler.mean_weight is None
    metrics = sampler.metrics(0)
    assert metrics["paced/sampler/entropy"] == pytest.approx(
        (stats.entropy(MIX) + np.array(MIX) @ np.log(np.bincount(sampler.groups))) / math.log(30)
    )
    assert math.isnan(metrics["paced/capability/code/realised"])
    assert math.isnan(metrics["paced/weight/ess"])
    table, groups = three([4, 4, 4, 4, 8, 8])
    metrics = mix_of(table, groups=groups, mix=[1, 0, 0]).metrics(0)
    assert metrics["paced/weight/ess"] == pytest.approx(2 / 6)  # two of six prompts make up the objective
    assert metrics["paced/weight/max"] == pytest.approx(1)
    assert mix_of(table, groups=groups).mean_weight == pytest.approx(0.25)


@pytest.mark.parametrize("way", WAYS)
def test_a_restored_loader_goes_on_as_if_undisturbed(tmp_path, way):
    """torchdata's StatefulDataLoader, cut after every batch; the mix changes on the way, and pass rates move."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    mixes = {3: (0.1, 0.2, 0.7), 9: (1 / 3, 1 / 3, 1 / 3), 14: (0.9, 0.0, 0.1)}

    def start():
        table = random_table(30)
        sampler = mix_of(table, *way, groups=np.arange(30) % 3, seed=3)
        loader = stateful.StatefulDataLoader(
            list(range(30)), batch_size=4, sampler=sampler, num_workers=0, drop_last=True, collate_fn=list
        )
        return table, sampler, loader

    def go_on(parts, batches, log):
        table, sampler, loader = parts
        iterator = iter(loader)
        for step in range(len(log), len(log) + batches):
            if step in mixes:
                sampler.set_mix(mixes[step])
            batch = next(iterator, None)
            if batch is None:
                iterator = iter(loader)
                batch = next(iterator)
            prompts = np.array(batch)
            log.append((prompts.tolist(), sampler.loss_weights(prompts).tolist()))
            table.observe(prompts, prompts % 5, np.full(len(prompts), 5), step)
            sampler.update(prompts)

    undisturbed = []
    go_on(start(), 20, undisturbed)
    for cut in range(17):
        parts, log = start(), []
        go_on(parts, cut, log)
        parts[0].save(tmp_path / "rates.parquet")
        state = pickle.dumps(parts[2].state_dict())

        _, sampler, loader = start()
        table = PassRateTable.load(tmp_path / "rates.parquet")
        sampler.refresh(table=table)
        loader.load_state_dict(pickle.loads(state))
        go_on((table, sampler, loader), 20 - cut, log)
        assert log == undisturbed, f"cut after {cut} batches"


def test_a_mix_that_is_set_before_the_loader_hands_over_the_state_holds_after():
    """A step of a resumed run decides before its first draw, and it is at the first draw that the state arrives."""
    undisturbed = mix_of(table_of([4] * 12), groups=np.arange(12) % 3)
    undisturbed.draw(25)
    undisturbed.set_mix([0.1, 0.1, 0.8])
    resumed = mix_of(table_of([4] * 12), groups=np.arange(12) % 3)
    resumed.set_mix([0.1, 0.1, 0.8])
    resumed.load_state_dict(state_after(25))
    np.testing.assert_array_equal(resumed.draw(30), undisturbed.draw(30))
    assert resumed.state_dict() == undisturbed.state_dict()


def test_the_same_mix_again_changes_nothing():
    sampler = mix_of(table_of([4] * 12))
    sampler.draw(7)
    state = sampler.state_dict()
    sampler.set_mix(list(MIX))
    assert sampler.state_dict() == state


def test_prompts_that_are_set_apart_are_never_drawn():
    table = random_table(300)
    groups = np.where(np.arange(300) % 5 == 4, -1, groups_of(300)).astype(np.int16)
    sampler = mix_of(table, 0.5, 0.2, groups=groups)
    drawn = sampler.draw(3000)
    assert (groups[drawn] >= 0).all()
    assert len(sampler) == 240
    table.observe([4, 5, 299], [4, 4, 4], [8, 8, 8], step=1)  # an estimate measures them, too
    sampler.update([4, 5, 299])
    np.testing.assert_array_equal(sampler.loss_weights(np.array([4, 299])), [0, 0])
    kept = np.flatnonzero(groups >= 0)
    alone = mix_of(some_of(table, kept), 0.5, 0.2, groups=groups[kept])
    np.testing.assert_array_equal(sampler.loss_weights(kept), alone.loss_weights(np.arange(240)))
    assert sampler.metrics(1)["paced/sampler/entropy"] == pytest.approx(alone.metrics(1)["paced/sampler/entropy"])


def state_after(draws, **settings):
    sampler = mix_of(table_of([4] * 12), groups=np.arange(12) % 3, **settings)
    sampler.draw(draws)
    return json.loads(json.dumps(sampler.state_dict()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"groups": np.arange(12)[::-1] % 3}, "groups is"),
        ({"names": ("code", "maths", "verse")}, r"names is \['code', 'maths', 'words'\], here"),
        ({"seed": 1}, "seed is 0, here 1"),
        ({"epoch_size": 4}, "epoch_size is 12, here 4"),
        ({"power": 1.0}, r"power is 0\.0, here 1\.0"),
        ({"explore": 0.1}, r"explore is 0\.0, here 0\.1"),
    ],
)
def test_the_state_of_another_run_is_refused(other, message):
    sampler = mix_of(table_of([4] * 12), **{"groups": np.arange(12) % 3, **other})
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(state_after(5))


def test_a_state_survives_json_with_its_mix():
    sampler = mix_of(table_of([4] * 12), groups=np.arange(12) % 3, mix=(0.1, 0.1, 0.8))
    sampler.load_state_dict(state_after(5))
    np.testing.assert_array_equal(sampler.mix, MIX)
    assert state_after(25)["parts"] == (sampler.draw(20), sampler.state_dict()["parts"])[1]
    with pytest.raises(ValueError, match=r"lacks .*quotas"):
        sampler.load_state_dict(sampler_of(table_of([4])).state_dict())


@pytest.mark.parametrize("mix", [(0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.2, 0), (math.nan, 0.5, 0.5), (0, 0, 0)])
def test_a_mix_off_the_simplex_is_refused(mix):
    sampler = mix_of(table_of([4] * 12))
    with pytest.raises(ValueError, match="share >= 0 for each of code, maths, words"):
        sampler.set_mix(mix)
    np.testing.assert_array_equal(sampler.mix, MIX)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch_size": 0}, "epoch_size must be >= 1"),
        ({"power": -1.0}, "power must be >= 0"),
        ({"groups": [0, 0, 1]}, "capability 'words' has no prompts"),
        ({"groups": [0, 1]}, "one of 3 capabilities for each of 3 prompts"),
        ({"groups": [0, 1, 3]}, "one of 3 capabilities"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        mix_of(table_of([4, 4, 4]), **settings)


def test_a_prompt_costs_ten_bytes_on_top_of_the_table():
    size = 256 * 3000
    sampler = mix_of(random_table(size), power=0.5)
    sampler.draw(100)
    holders = [sampler, *sampler._parts]
    held = {id(x): x.nbytes for holder in holders for x in vars(holder).values() if isinstance(x, np.ndarray)}
    assert 10 * size <= sum(held.values()) < 10.3 * size
    assert len(pickle.dumps(sampler.state_dict())) < 3000


def test_a_sampler_of_some_rows_is_one_of_a_table_of_these():
    table, rows = random_table(500), np.arange(1, 500, 3, dtype=np.int32)
    part, alone = PassRateSampler(table, Kernel(), rows=rows), sampler_of(some_of(table, rows))
    np.testing.assert_array_equal(part.draw(300), alone.draw(300))
    np.testing.assert_array_equal(part.weights(), alone.weights())
