"""The data examples, run as a user would: every problem once, in one part, in verl's columns."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = ("test", "teacher", "train")
PROBLEMS = 40
TWICE, DISPUTED = 3, 2  # problems with two ids; problems whose copies disagree


def run(script: str, *arguments: object) -> None:
    """``python examples/SCRIPT ARGUMENTS``, without the seconds that a new process takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def row(problem: int, index: str, answer: str) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"Solve problem {problem}."}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def dapo(order: int) -> list[dict]:
    """As the public file: each id five times, in some order."""
    rows = [row(i, f"id-{i}", str(i)) for i in range(PROBLEMS)]
    rows += [row(i, f"other-{i}", str(i)) for i in range(TWICE)]
    rows += [row(PROBLEMS + i, f"disputed-{i}-{answer}", answer) for i in range(DISPUTED) for answer in ("1", "2")]
    rows *= 5
    random.Random(order).shuffle(rows)
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def prepared(folder: Path) -> dict[str, list[dict]]:
    return {part: pq.read_table(folder / f"{part}.parquet").to_pylist() for part in PARTS}


def together(parts: dict[str, list[dict]]) -> list[dict]:
    return [row for rows in parts.values() for row in rows]


def texts(rows: list[dict]) -> list[str]:
    return sorted(row["prompt"][0]["content"] for row in rows)


def test_every_problem_of_dapo_once_in_one_part(tmp_path: Path) -> None:
    source = write(tmp_path / "dapo.parquet", dapo(order=0))
    run("prepare_dapo_math.py", "--input", source, "--out", tmp_path / "a", "--test", 8, "--teacher-share", 0.25)
    parts = prepared(tmp_path / "a")
    assert {part: len(rows) for part, rows in parts.items()} == {"test": 8, "teacher": 8, "train": 24}
    assert texts(together(parts)) == sorted(f"Solve problem {i}." for i in range(PROBLEMS))
    one = next(row for row in together(parts) if row["reward_model"]["ground_truth"] == "39")
    place = next(part for part, rows in parts.items() if one in rows)
    extra_info = {"index": "id-39", "split": place, "answer": "39"}
    assert one == row(39, "id-39", "39") | {"extra_info": extra_info}


def test_a_problem_stays_in_its_part_whatever_the_order_and_format(tmp_path: Path) -> None:
    for name, source in [
        ("a", write(tmp_path / "dapo.parquet", dapo(order=0))),
        ("b", write(tmp_path / "dapo.jsonl", dapo(order=1))),
    ]:
        run("prepare_dapo_math.py", "--input", source, "--out", tmp_path / name, "--test", 8)
    first, second = prepared(tmp_path / "a"), prepared(tmp_path / "b")
    assert {part: texts(rows) for part, rows in first.items()} == {part: texts(rows) for part, rows in second.items()}


def test_solutions_are_joined_by_id_and_problems_without_one_do_not_train(tmp_path: Path) -> None:
    source = write(tmp_path / "dapo.parquet", dapo(order=0))
    solved = [i for i in range(TWICE, PROBLEMS) if i % 3 == 0]
    solutions = write(tmp_path / "solutions.jsonl", [{"index": f"id-{i}", "solution": f"so it is {i}"} for i in solved])
    run("prepare_dapo_math.py", "--input", source, "--out", tmp_path, "--test", 8, "--solutions", solutions)
    parts = prepared(tmp_path)
    assert 0 < len(parts["train"]) < 16
    assert len(parts["test"]) == 8
    for row in together(parts):
        problem = int(row["reward_model"]["ground_truth"])
        assert row["extra_info"]["solution"] == (f"so it is {problem}" if problem in solved else None)
    assert all(row["extra_info"]["solution"] for row in parts["train"])


def test_too_few_problems(tmp_path: Path) -> None:
    source = write(tmp_path / "dapo.jsonl", dapo(order=0))
    with pytest.raises(SystemExit, match=f"--test {PROBLEMS}: there are only {PROBLEMS} different problems"):
        run("prepare_dapo_math.py", "--input", source, "--out", tmp_path, "--test", PROBLEMS)


def test_ones_own_jsonl(tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", [{"q": "7 · 8?", "answer": 56, "proof": "49 + 7"}])
    target = tmp_path / "data" / "train.parquet"
    run("prepare_jsonl.py", source, target, "--question", "q", "--solution", "proof")
    assert pq.read_table(target).to_pylist() == [
        {
            "data_source": "my_problems",
            "prompt": [{"role": "user", "content": "7 · 8?"}],
            "ability": "reasoning",
            "reward_model": {"style": "rule", "ground_truth": "56"},
            "extra_info": {"index": "0", "split": "train", "solution": "49 + 7", "answer": "56"},
        }
    ]


def test_ones_own_problems_without_a_solution_have_none_and_not_a_blank_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"question": "7?", "answer": 7, "proof": " "}, {"question": "8?", "answer": 8, "proof": "4 + 4"}]
    source = write(tmp_path / "mine.jsonl", [*lines, {"question": "9?", "answer": 9}])
    run("prepare_jsonl.py", source, tmp_path / "with.parquet", "--solution", "proof")
    extra_info = pq.read_table(tmp_path / "with.parquet")["extra_info"].to_pylist()
    assert [row["solution"] for row in extra_info] == [None, "4 + 4", None]
    assert "No expert solutions" not in capsys.readouterr().out
    run("prepare_jsonl.py", source, tmp_path / "without.parquet")
    extra_info = pq.read_table(tmp_path / "without.parquet")["extra_info"].to_pylist()
    assert all("solution" not in row for row in extra_info)
    assert "paced.teacher.context=none and answer work with these data" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no row has profo; the first has question, answer, proof"):
        run("prepare_jsonl.py", source, tmp_path / "typo.parquet", "--solution", "profo")


def test_dapo_without_solutions_says_which_contexts_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "dapo.parquet", dapo(order=0))
    run("prepare_dapo_math.py", "--input", source, "--out", tmp_path, "--test", 8)
    assert "paced.teacher.context=none and answer work with these data" in capsys.readouterr().out


@pytest.mark.parametrize("solved", [True, False])
def test_verl_can_train_on_both_kinds_of_files_together(tmp_path: Path, solved: bool) -> None:
    """As configs/multi_teacher.yaml does."""
    source = write(tmp_path / "dapo.parquet", dapo(order=0))
    solutions = write(tmp_path / "so.jsonl", [{"index": f"id-{i}", "solution": f"it is {i}"} for i in range(PROBLEMS)])
    arguments = ["--input", source, "--out", tmp_path, "--test", 8] + ["--solutions", solutions] * solved
    run("prepare_dapo_math.py", *arguments)
    mine = write(tmp_path / "mine.jsonl", [{"question": "7?", "answer": 7}])
    run("prepare_jsonl.py", mine, tmp_path / "mine.parquet", "--data-source", "code")
    files = [str(tmp_path / name) for name in ("train.parquet", "mine.parquet")]
    parts = [datasets.Dataset.from_parquet(file, cache_dir=str(tmp_path)) for file in files]
    joined = datasets.concatenate_datasets(parts)
    assert joined[-1]["data_source"] == "code"
    assert joined[-1]["extra_info"].get("solution") is None
