"""A person's own problems, in JSONL or parquet, as the parquet file verl reads."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def convert(
    source: str | Path,
    target: str | Path,
    *,
    data_source: str,
    split: str = "train",
    question: str = "question",
    answer: str = "answer",
    solution: str | None = None,
) -> Path:
    """Write the rows of ``source`` to ``target`` in verl's columns and return its path.

    Args:
        source: a ``.jsonl`` or ``.parquet`` file with a row per problem.
        target: the parquet file to write.
        data_source: the name under which verl reports these problems, and by which a reward is chosen.
        split: noted in every row.
        question: column with the problem's text.
        answer: column with the final answer.
        solution: column with a worked solution, if there is one; the field is left out otherwise, and a row whose
            column is null or blank has null there.
    """
    rows = _read(Path(source))
    if not rows:
        raise ValueError(f"{source}: no rows")
    wanted = [question, answer]
    if solution is not None and not any(solution in row for row in rows):
        raise ValueError(f"{source}: no row has {solution}; the first has {', '.join(rows[0])}")
    converted = []
    for index, row in enumerate(rows):
        missing = [name for name in wanted if row.get(name) is None]
        if missing:
            raise ValueError(f"{source}: row {index} has no {', '.join(missing)}; it has {', '.join(row)}")
        truth = str(row[answer])
        extra: dict[str, Any] = {"index": str(index), "split": split, **_solution(row, solution), "answer": truth}
        converted.append(
            {
                "data_source": data_source,
                "prompt": [{"role": "user", "content": str(row[question])}],
                "ability": "reasoning",
                "reward_model": {"style": "rule", "ground_truth": truth},
                # Text, as DAPO's: verl joins several files only if their types agree.
                "extra_info": extra,
            }
        )
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(converted), path)
    return path


def _solution(row: dict[str, Any], column: str | None) -> dict[str, str | None]:
    if column is None:
        return {}
    text = row.get(column)
    return {"solution": None if text is None or not str(text).strip() else str(text)}


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    raise ValueError(f"{path}: expected a .jsonl or .parquet file")
