"""Prepared files: verl's columns, disjoint splits, the same for the same seed, solutions that are right."""

import pyarrow.parquet as pq
import pytest

pytest.importorskip("reasoning_gym")

from paced_verl.tasks.reasoning_gym import prepare, worked_solution
from paced_verl.tasks.reward import compute_score

FAMILIES = {
    "spell_backward": {"min_word_len": 3, "max_word_len": 6},
    "chain_sum": {"min_terms": 2, "max_terms": 4, "max_digits": 2},
    "gsm_symbolic": {},
    "countdown": {},
}


def read(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return prepare(FAMILIES, train=40, test=12, seed=3, out_dir=tmp_path_factory.mktemp("data"))


def test_sizes_shares_and_indices(files):
    train, test = map(read, files)
    assert [len(train), len(test)] == [40, 12]
    assert [row["extra_info"]["index"] for row in train] == list(range(40))
    assert {row["extra_info"]["split"] for row in test} == {"test"}
    for family in FAMILIES:
        assert sum(row["data_source"] == f"reasoning_gym/{family}" for row in train) == 10


def test_splits_are_disjoint(files):
    questions = [row["prompt"][0]["content"] for path in files for row in read(path)]
    assert len(set(questions)) == len(questions)


def test_same_seed_same_rows_and_more_training_rows_keep_the_test_rows(files, tmp_path):
    again = prepare(FAMILIES, train=40, test=12, seed=3, out_dir=tmp_path / "again")
    assert [read(path) for path in again] == [read(path) for path in files]
    longer = prepare(FAMILIES, train=60, test=12, seed=3, out_dir=tmp_path / "longer")
    assert read(longer[1]) == read(files[1])
    other = prepare(FAMILIES, train=40, test=12, seed=4_000, out_dir=tmp_path / "other")
    assert read(other[0]) != read(files[0])


def test_worked_solutions_score_one_and_wrong_answers_zero(files):
    for row in (row for path in files for row in read(path)):
        truth, extra = row["reward_model"]["ground_truth"], row["extra_info"]
        assert compute_score(row["data_source"], extra["solution"], truth, extra)["acc"] == 1.0
        assert compute_score(row["data_source"], extra["solution"] + "7", truth, extra)["acc"] == 0.0
        assert compute_score(row["data_source"], "", truth, extra)["acc"] == 0.0


@pytest.mark.parametrize(
    ("expression", "solution"), [("4 - 1 - 7", "4-1=3;3-7=-4"), ("12 + 30", "12+30=42"), ("5", "5")]
)
def test_partial_sums(expression, solution):
    assert worked_solution("chain_sum", {"metadata": {"expression": expression}}) == solution


def test_verl_reads_the_files(files, tmp_path):
    rl_dataset = pytest.importorskip("verl.utils.dataset.rl_dataset")
    from omegaconf import OmegaConf

    config = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts": False})
    row = rl_dataset.RLHFDataset(str(files[0]), tokenizer=None, config=config)[5]
    assert row["index"] == 5
    assert row["raw_prompt"] == read(files[0])[5]["prompt"]
    assert row["reward_model"]["style"] == "rule"


def test_too_few_different_questions_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"chain_sum.*too few"):
        prepare({"chain_sum": {"min_terms": 1, "max_terms": 1, "max_digits": 1}}, 20, 5, 0, tmp_path)


def test_no_family_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        prepare({}, 1, 1, 0, tmp_path)
