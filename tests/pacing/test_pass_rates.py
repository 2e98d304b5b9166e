import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_verl.config import PassRateConfig
from paced_verl.pacing import pass_rates
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable

SIZE = 6


@st.composite
def observations(draw):
    """(prompts, successes, samples) of one call."""
    rows = draw(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 16), st.integers(0, 16)), max_size=12))
    prompts = np.array([row[0] for row in rows], np.int64)
    counts = np.sort(np.array([row[1:] for row in rows], np.int64).reshape(-1, 2), axis=1)
    return prompts, counts[:, 0], counts[:, 1]


@pytest.fixture
def table():
    table = PassRateTable(SIZE, decay=0.5)
    table.observe(np.array([0, 1, 2, 3]), [0, 2, 6, 8], [8, 8, 8, 8], step=3)
    return table


def test_a_prompt_costs_twelve_bytes():
    table = PassRateTable(1000)
    assert sum(value.nbytes for value in vars(table).values() if isinstance(value, np.ndarray)) == 12_000


def test_counts_add_up_and_old_ones_decay_once_a_call(table):
    table.observe(np.array([1, 1, 4, 5]), [3, 1, 2, 0], [4, 4, 2, 0], step=9)
    np.testing.assert_array_equal(table.successes, [0, 1 + 4, 6, 8, 2, 0])
    np.testing.assert_array_equal(table.samples, [8, 4 + 8, 8, 8, 2, 0])
    np.testing.assert_array_equal(table.last_seen, [3, 9, 3, 3, 9, -1])  # 0 samples is no observation
    np.testing.assert_allclose(table.rates(), [0, 5 / 12, 3 / 4, 1, 1, np.nan])
    assert table.staleness(10) == (7 + 1 + 7 + 7 + 1) / 5


@settings(deadline=None)
@given(st.lists(observations(), max_size=6), st.sampled_from([1.0, 0.9, 0.0]))
def test_the_table_is_a_dictionary_of_decayed_counts(calls, decay):
    table, truth = PassRateTable(SIZE, decay), {}
    for step, (prompts, successes, samples) in enumerate(calls):
        table.observe(prompts, successes, samples, step)
        for prompt in {p for p, n in zip(prompts, samples, strict=True) if n}:
            old, mine = truth.get(prompt, (0.0, 0.0, -1)), prompts == prompt
            truth[prompt] = (old[0] * decay + successes[mine].sum(), old[1] * decay + samples[mine].sum(), step)
    for prompt in range(SIZE):
        k, n, last = truth.get(prompt, (0, 0, -1))
        assert table.successes[prompt] == pytest.approx(k, rel=1e-6)
        assert table.samples[prompt] == pytest.approx(n, rel=1e-6)
        assert table.last_seen[prompt] == last
    assert np.all((table.successes >= 0) & (table.successes <= table.samples))


@pytest.mark.parametrize(
    ("prompts", "successes", "samples", "message"),
    [
        ([0, 1], [1], [8, 8], "shapes differ"),
        ([0.0], [1], [8], "must be integers"),
        ([6], [1], [8], r"must lie in 0\.\.5, got 6\.\.6"),
        ([-1], [1], [8], r"must lie in 0\.\.5"),
        ([0, 1], [1, 9], [8, 8], r"got 9\.0 of 8\.0 for prompt 1"),
        ([0], [-1], [8], "0 <= successes <= samples"),
        ([0], [np.nan], [8], "0 <= successes <= samples"),
        ([0], [1], [np.inf], "0 <= successes <= samples"),
    ],
)
def test_bad_observations_change_nothing(table, prompts, successes, samples, message):
    before = table.successes.copy(), table.samples.copy()
    with pytest.raises(ValueError, match=message):
        table.observe(np.array(prompts), successes, samples, step=4)
    np.testing.assert_array_equal((table.successes, table.samples), before)


@pytest.mark.parametrize("arguments", [(0,), (3, 1.5), (3, -0.1)])
def test_bad_tables_are_refused(arguments):
    with pytest.raises(ValueError, match="pass rates"):
        PassRateTable(*arguments)


def test_summary_by_hand():
    table = PassRateTable(13)
    table.observe(np.arange(11), np.arange(11), np.full(11, 10), step=0)
    summary = table.summary()
    assert summary["mean"] == pytest.approx(0.5)
    assert (summary["low"], summary["frontier"], summary["high"]) == pytest.approx((2 / 11, 7 / 11, 2 / 11))
    assert summary["unseen"] == pytest.approx(2 / 13)
    assert summary["histogram"] == [1] * 9 + [2]


@settings(max_examples=30, deadline=None)
@given(st.lists(observations(), max_size=4), st.sampled_from([1.0, 0.9]))
def test_save_and_load_round_trip(calls, decay):
    table = PassRateTable(SIZE, decay, "data")
    for step, call in enumerate(calls):
        table.observe(*call, step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rates.parquet"
        table.save(path)
        loaded = PassRateTable.load(path, expected_size=SIZE, fingerprint="data", decay=decay)
        assert [file.name for file in Path(folder).iterdir()] == ["rates.parquet"]
    for name in ("successes", "samples", "last_seen"):
        stored, original = getattr(loaded, name), getattr(table, name)
        assert stored.dtype == original.dtype
        np.testing.assert_array_equal(stored, original)
    assert (loaded.decay, loaded.fingerprint) == (decay, "data")


def write(path, **columns):
    pq.write_table(pa.table(columns), path)


def test_a_table_made_by_hand(tmp_path):
    path = tmp_path / "mine.parquet"
    write(path, samples=[8, 4], note=["x", "y"], prompt=[4, 1], successes=[2, 4])
    table = PassRateTable.load(path, expected_size=SIZE, fingerprint="any")
    np.testing.assert_allclose(table.rates(), [np.nan, 1, np.nan, np.nan, 0.25, np.nan])
    np.testing.assert_array_equal(table.last_seen, [-1, 0, -1, -1, 0, -1])
    with pytest.raises(ValueError, match=r"mine\.parquet: expected each prompt once, within 0\.\.1"):
        PassRateTable.load(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(table, tmp_path, share):
    path = tmp_path / "cut.parquet"
    table.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.parquet.*damaged.*estimate the pass rates again"):
        PassRateTable.load(path)


@pytest.mark.parametrize("column", range(4))
def test_a_flipped_bit_is_noticed(tmp_path, column):
    rng = np.random.default_rng(0)
    table, samples = PassRateTable(5000), rng.integers(1, 300, 5000)
    table.observe(np.arange(5000), rng.integers(0, samples + 1), samples, step=1)
    table.last_seen[:] = rng.integers(0, 5000, 5000)
    path = tmp_path / "rotten.parquet"
    table.save(path)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    start, content = chunk.dictionary_page_offset or chunk.data_page_offset, path.read_bytes()
    for share in (0.2, 0.5, 0.8, 0.99):
        rotten = bytearray(content)
        rotten[start + int(share * chunk.total_compressed_size)] ^= 1
        path.write_bytes(rotten)
        with pytest.raises(ValueError, match=r"rotten\.parquet"):
            PassRateTable.load(path, expected_size=5000)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": [0, 1], "reward": [1, 2]}, "samples, successes is missing"),
        ({"prompt": [0, 0], "successes": [1, 1], "samples": [2, 2]}, "more than one row"),
        ({"prompt": [0, 9], "successes": [1, 1], "samples": [2, 2]}, "prompts must lie in"),
        ({"prompt": [0, 1], "successes": [1, 3], "samples": [2, 2]}, "0 <= successes <= samples"),
        ({"prompt": [0, None], "successes": [1, 1], "samples": [2, 2]}, "must be integers"),
        ({"prompt": ["a", "b"], "successes": [1, 1], "samples": [2, 2]}, "must be integers"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, columns, message):
    path = tmp_path / "foreign.parquet"
    write(path, **columns)
    with pytest.raises(ValueError, match=rf"foreign\.parquet.*{message}"):
        PassRateTable.load(path, expected_size=SIZE)


def test_a_table_of_another_data_set_is_refused(table, tmp_path):
    path = tmp_path / "other.parquet"
    table.fingerprint = "a"
    table.save(path)
    with pytest.raises(ValueError, match=r"other\.parquet: expected 7 prompts, found 6"):
        PassRateTable.load(path, expected_size=7)
    with pytest.raises(ValueError, match=r"other\.parquet: expected pass rates of data set b, found those of a"):
        PassRateTable.load(path, fingerprint="b")
    assert len(PassRateTable.load(path)) == SIZE


def test_a_table_of_another_format_is_refused(table, tmp_path, monkeypatch):
    path = tmp_path / "new.parquet"
    monkeypatch.setattr(pass_rates, "_FORMAT", b"2")
    table.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"new\.parquet: expected format 1, found 2"):
        PassRateTable.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        PassRateTable.load(tmp_path / "nowhere.parquet")


def test_a_save_that_fails_keeps_the_last_one(table, tmp_path, monkeypatch):
    path = tmp_path / "rates.parquet"
    table.save(path)
    before = path.read_bytes()

    def full_disk(_table, where, **_settings):
        Path(where).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    table.observe([0], [1], [1], step=9)
    with pytest.raises(OSError, match="no space"):
        table.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("decay", "rate", "weight"), [(1.0, 0.54, 2.75), (0.8, 0.865, 1.27)])
def test_what_is_believed_of_a_student_that_goes_from_20_to_90_per_cent_in_100_steps(decay, rate, weight):
    """8 samples first, then 4 rollouts in each step; over 2,000 prompts, what step 100 is drawn by: the mean estimate,
    and the mean weight over the true one."""
    rng, size = np.random.default_rng(0), 2000
    table, prompts = PassRateTable(size, decay), np.arange(size)
    truth = np.linspace(0.2, 0.9, 101)
    table.observe(prompts, rng.binomial(8, truth[0], size), np.full(size, 8), step=0)
    for step, p in enumerate(truth[1:100], start=1):
        table.observe(prompts, rng.binomial(4, p, size), np.full(size, 4), step)
    assert table.rates().mean() == pytest.approx(rate, abs=0.005)
    weights = Kernel()(table.successes, table.samples)
    assert weights.mean() / (0.9 * 0.1) == pytest.approx(weight, abs=0.02)


def test_by_default_the_table_follows_a_student_that_learns():
    assert PassRateConfig().decay == 0.8
    table = PassRateTable(1, PassRateConfig().decay)
    for step in range(60):
        table.observe([0], [1], [4], step)
    assert table.samples[0] == pytest.approx(5 * 4, rel=1e-4), "about the last five visits count"
