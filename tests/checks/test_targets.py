"""Teacher responses that are given are looked at before Ray: the column, the file, and whose it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from paced_verl.checks import check
from paced_verl.config import ConfigError
from paced_verl.fingerprint import prompt_hash, tokenizer_hash
from paced_verl.launch.plan import Plan
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.files import Origin
from paced_verl.targets.store import Target, TargetStore
from tests.checks.test_checks import ROWS, config_of, write_data, write_model

UNKNOWN = Origin()
VOCABULARY = 100  # of the student's model; its tokenizer knows four words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "train.parquet")
    for name in ("student", "teacher"):
        write_model(folder / name, ["problem", "two", "and"], VOCABULARY)
    return folder


def messages(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"problem {i}"}]


def write_targets(
    path: Path, rows: range = range(ROWS), ids: tuple[int, ...] = (1, 2), offset: int = 0, origin: Origin = UNKNOWN
) -> str:
    store = TargetStore(origin)
    for i in rows:
        store.add(i, Target(ids, "two", prompt_hash=prompt_hash(messages(i + offset))))
    store.save(path)
    return f"paced.targets.file={path}"


def problem(folder: Path, *overrides: str, group: str = "two_stage") -> str:
    with pytest.raises(ConfigError) as error:
        check(config_of(folder, *overrides, group=group))
    return str(error.value)


def tokenizer_of(folder: Path) -> str:
    return tokenizer_hash(AutoTokenizer.from_pretrained(folder / "student"))


def test_a_file_that_belongs_to_the_run_passes(folder: Path, tmp_path: Path) -> None:
    for origin in (Origin(), Origin("known to the driver only", tokenizer_of(folder))):
        check(config_of(folder, write_targets(tmp_path / "mine.parquet", origin=origin)))
    check(config_of(folder, write_targets(tmp_path / "highest.parquet", ids=(VOCABULARY - 1,))))
    new = tmp_path / "not" / "yet" / "there.parquet"
    check(config_of(folder, f"paced.targets.file={new}"))
    assert not new.parent.exists(), "looking leaves nothing behind"
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".parquet")]


def test_a_file_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    table = PassRateTable(ROWS)
    table.save(tmp_path / "rates.parquet")
    (tmp_path / "dir.parquet").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "file").touch()
    cases: dict[str, list[str]] = {
        f"{tmp_path}/rates.parquet": ["is not a file of teacher responses", "no column prompt", "paced-verl targets"],
        f"{tmp_path}/text": ["is not a file of teacher responses"],
        f"{tmp_path}/dir.parquet": ["is a folder", "parquet file"],
        "/proc/nope/x.parquet": ["/proc/nope/x.parquet cannot be written", "/proc"],
        f"{tmp_path}/file/x.parquet": [f"{tmp_path}/file/x.parquet cannot be written"],
    }
    for path, words in cases.items():
        found = problem(folder, f"paced.targets.file={path}")
        for word in ("paced.targets.file", path, *words):
            assert word in found
        assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"origin": Origin(tokenizer="another")}, ["student's tokenizer", "found those of another"]),
        ({"ids": (1, VOCABULARY)}, ["token id 100", "ids below 100"]),
        ({"ids": ()}, ["holds no response at all", "Delete it"]),
        ({"offset": 1000}, ["prompts that are not in data.train_files", "made for other data"]),
        ({"rows": range(5, 6), "offset": 1000}, ["prompts that are not in data.train_files"]),
        ({"rows": range(ROWS + 1)}, [f"response to prompt {ROWS}, but the data have {ROWS} rows"]),
    ],
)
def test_a_file_of_other_data_or_another_student_is_refused(
    folder: Path, tmp_path: Path, written: dict[str, Any], words: list[str]
) -> None:
    found = problem(folder, write_targets(tmp_path / "targets.parquet", **written))
    for word in ("paced.targets.file", f"{tmp_path}/targets.parquet"):
        assert word in found or "token id" in found
    for word in words:
        assert word in found


def test_a_subset_in_another_order_is_left_to_the_driver(folder: Path, tmp_path: Path) -> None:
    """verl draws it, and filters it: prompt 0 of the run is any row of the file."""
    file = write_targets(tmp_path / "targets.parquet", rows=range(4), offset=6)
    check(config_of(folder, file, "data.train_max_samples=8", "data.seed=1"))


def test_prompts_that_verl_rewrites_are_left_to_the_driver(folder: Path, tmp_path: Path) -> None:
    file = write_targets(tmp_path / "targets.parquet", offset=1000)
    write_data(tmp_path / "train.parquet", images=[None] * ROWS)
    check(config_of(folder, file, f"data.train_files={tmp_path}/train.parquet"))


def with_responses(path: Path, responses: list[Any] | pa.Array) -> str:
    return f"data.train_files={write_data(path, response=responses)}"


BLANK = ["", None, " \n"]


@pytest.mark.parametrize(
    ("responses", "words"),
    [
        ([""] * ROWS, [f"{ROWS} of {ROWS} rows", "have no response"]),
        (BLANK * 4, [f"{ROWS} of {ROWS} rows", "have no response"]),
        (pa.nulls(ROWS), [f"{ROWS} of {ROWS} rows", "have no response"]),
        ([1] * ROWS, ["field response is int64, not text"]),
        ([["two"]] * ROWS, ["field response is list<", "not text"]),
    ],
)
def test_a_column_without_responses_is_refused(folder: Path, tmp_path: Path, responses: Any, words: list[str]) -> None:
    data = with_responses(tmp_path / "data.parquet", responses)
    found = problem(folder, data, "paced.targets.column=response")
    for word in ("paced.targets.column", *words):
        assert word in found


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_blank_rows_are_no_responses(folder: Path, tmp_path: Path, kind: pa.DataType) -> None:
    """The teacher writes theirs, where it can write."""
    data = with_responses(tmp_path / "data.parquet", pa.array([*BLANK, *["two"] * (ROWS - 3)]).cast(kind))
    column, reference = "paced.targets.column=response", "paced.teacher.backend=reference"
    assert "from response, else written" in str(Plan.of(config_of(folder, data, column)))
    found = problem(folder, data, column, reference)
    for word in ("paced.targets.column", f"3 of {ROWS} rows", "have no response", reference, "writes none"):
        assert word in found
    check(config_of(folder, data, column, reference, group="reverse_kl"))


def test_blank_rows_in_a_field_of_a_field(folder: Path, tmp_path: Path) -> None:
    extra = [{"index": i, "responses": {"best": text}} for i, text in enumerate([*BLANK, *["two"] * (ROWS - 4)])]
    path = write_data(tmp_path / "data.parquet", extra_info=[None, *extra])
    found = problem(
        folder,
        f"data.train_files={path}",
        "paced.targets.column=extra_info.responses.best",
        "paced.teacher.backend=reference",
    )
    assert f"4 of {ROWS} rows" in found
    assert "have no extra_info.responses.best" in found


def test_a_teacher_that_only_reads_needs_a_whole_file(folder: Path, tmp_path: Path) -> None:
    reference = "paced.teacher.backend=reference"
    check(config_of(folder, write_targets(tmp_path / "all.parquet"), reference))
    part = write_targets(tmp_path / "part.parquet", range(3))
    check(config_of(folder, part))
    found = problem(folder, part, reference)
    for word in (f"responses to 3 of {ROWS} prompts", reference, "writes none"):
        assert word in found


@pytest.mark.parametrize("key", ["column", "file"])
def test_an_empty_name_is_refused(folder: Path, key: str) -> None:
    assert f"paced.targets.{key}=''" in problem(folder, f"paced.targets.{key}=''")
