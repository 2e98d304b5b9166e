"""One's own files: JSONL and parquet give the same verl rows; what is missing is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paced_verl.tasks.files import convert

ROWS = [{"q": "2 + 2?", "a": 4, "how": "2+2=4"}, {"q": "3 + 4?", "a": 7, "how": "3+4=7"}]
COLUMNS = {"question": "q", "answer": "a", "solution": "how", "data_source": "sums"}


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.parquet"])
def test_rows(tmp_path, name):
    second = pq.read_table(convert(write(tmp_path / name), tmp_path / "to" / "train.parquet", **COLUMNS)).to_pylist()[1]
    assert second == {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "3 + 4?"}],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"index": "1", "split": "train", "solution": "3+4=7", "answer": "7"},
    }


def test_without_solutions(tmp_path):
    path = convert(write(tmp_path / "mine.jsonl"), tmp_path / "out.parquet", **COLUMNS | {"solution": None})
    assert all("solution" not in row["extra_info"] for row in pq.read_table(path).to_pylist())


def test_what_is_missing_is_named(tmp_path):
    broken = write(tmp_path / "mine.jsonl", [*ROWS, {"q": "5 + 5?", "how": "?"}])
    with pytest.raises(ValueError, match="row 2 has no a; it has q, how"):
        convert(broken, tmp_path / "out.parquet", **COLUMNS)
    with pytest.raises(ValueError, match="no rows"):
        convert(write(tmp_path / "empty.jsonl", []), tmp_path / "out.parquet", **COLUMNS)
    with pytest.raises(ValueError, match=r"expected a \.jsonl or \.parquet"):
        convert(tmp_path / "mine.csv", tmp_path / "out.parquet", **COLUMNS)
