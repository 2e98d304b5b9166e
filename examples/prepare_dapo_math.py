r"""DAPO-Math-17k for a paced run: every problem once, in two disjoint splits and a held-out part.

    python examples/prepare_dapo_math.py --input dapo-math-17k.parquet --out data/dapo-math-17k
    python examples/prepare_dapo_math.py --input BytedTsinghua-SIA/DAPO-Math-17k --out data/dapo-math-17k \
        --solutions solutions.jsonl

The public file holds 1,791,700 rows: 17,917 ids, a hundred times each, and some problems under more than one id. Here
two rows are one problem if their prompts have the same text; problems whose copies disagree about the answer are left
out. PACED trains its teacher by RL on one split and distils on the other, so that the teacher has not seen what it
teaches. `--input` is a local parquet or JSONL file in DAPO's columns, or the name of a data set on the hub.

What comes out, in verl's columns (data_source, prompt, ability, reward_model, extra_info):

    data/dapo-math-17k/teacher.parquet   for the teacher's own RL
    data/dapo-math-17k/train.parquet     data.train_files of the distillation
    data/dapo-math-17k/test.parquet      data.val_files of both

`--solutions` is JSONL with `index` (extra_info.index) and `solution` (an expert's text): it fills
extra_info.solution, which `paced.teacher.context=solution` shows to the teacher, and which the recipes in configs/ ask
for. Problems without one then leave train.parquet. Without `--solutions` there is no such field: take
`paced.teacher.context=answer` (the final answer) or `none`. A problem's place depends on its text and `--seed` only,
not on the order of the file.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

WITHOUT = (
    "No expert solutions: paced.teacher.context=none and answer work with these data, solution does not "
    "(--solutions adds them)."
)


def read(source: str) -> Iterator[Row]:
    """The rows of a local file or of a data set on the hub, one at a time: all of DAPO's would fill the memory."""
    if source.endswith(".jsonl"):
        with open(source, encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    elif source.endswith(".parquet"):
        for batch in pq.ParquetFile(source).iter_batches():
            yield from batch.to_pylist()
    else:
        from datasets import load_dataset

        yield from load_dataset(source, split="train")


def text_of(row: Row) -> str:
    """What makes two rows one problem."""
    return "\n".join(message["content"] for message in row["prompt"])


def unique(rows: Iterable[Row]) -> list[Row]:
    """The first row of every problem, without those whose copies disagree about the answer."""
    first: dict[str, Row] = {}
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        text = text_of(row)
        first.setdefault(text, row)
        answers[text].add(str(row["reward_model"]["ground_truth"]))
    return [row for text, row in first.items() if len(answers[text]) == 1]


def split(problems: list[Row], test: int, teacher_share: float, seed: int) -> dict[str, list[Row]]:
    """Three disjoint parts: test, teacher, train."""
    if test >= len(problems):
        raise SystemExit(f"--test {test}: there are only {len(problems)} different problems")
    shuffled = sorted(problems, key=lambda row: sha256(f"{seed} {text_of(row)}".encode()).digest())
    end = test + round(teacher_share * (len(problems) - test))
    return {"test": shuffled[:test], "teacher": shuffled[test:end], "train": shuffled[end:]}


def as_verl(row: Row, part: str, solutions: dict[str, str]) -> Row:
    """A row in verl's columns, with its part and, if there are solutions at all, its own or null."""
    truth, index = str(row["reward_model"]["ground_truth"]), str(row["extra_info"]["index"])
    solution = {"solution": solutions.get(index)} if solutions else {}
    return {
        "data_source": row["data_source"],
        "prompt": row["prompt"],
        "ability": row["ability"],
        "reward_model": {"style": row["reward_model"]["style"], "ground_truth": truth},
        "extra_info": {"index": index, "split": part, **solution, "answer": truth},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a .parquet or .jsonl file, or a data set on the hub")
    parser.add_argument("--out", type=Path, required=True, help="a folder, made if it is not there")
    parser.add_argument("--solutions", help="JSONL: index, solution")
    parser.add_argument("--test", type=int, default=512, help="problems held out")
    parser.add_argument("--teacher-share", type=float, default=0.5, help="share of the others for the teacher's RL")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rows = read(args.solutions) if args.solutions else ()
    solutions = {str(row["index"]): row["solution"] for row in rows if (row["solution"] or "").strip()}
    if args.solutions and not solutions:
        raise SystemExit(f"--solutions {args.solutions}: there is no solution in it")
    problems = unique(read(args.input))
    args.out.mkdir(parents=True, exist_ok=True)
    for part, rows in split(problems, args.test, args.teacher_share, args.seed).items():
        converted = [as_verl(row, part, solutions) for row in rows]
        if args.solutions and part == "train":
            converted = [row for row in converted if row["extra_info"]["solution"]]
        if not converted:
            raise SystemExit(f"{part}: no problem is left; it had {len(rows)} before those without a solution went")
        pq.write_table(pa.Table.from_pylist(converted), args.out / f"{part}.parquet")
        print(f"{args.out / part}.parquet: {len(converted)} problems")
    if not solutions:
        print(WITHOUT)


if __name__ == "__main__":
    main()
