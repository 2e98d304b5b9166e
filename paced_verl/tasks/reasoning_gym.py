"""Verifiable problems from reasoning-gym as the parquet files verl reads.

Every row carries a worked solution beside its answer, so that teachers with a privileged context have something to
read and small models something to learn from.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.tasks.reward import PREFIX, compute_score

# Problems are drawn until enough different questions are found; a family with fewer than that is an error.
TRIES_PER_ROW = 50


def prepare(
    families: dict[str, dict[str, Any]],
    train: int,
    test: int,
    seed: int,
    out_dir: str | Path,
    turns: Sequence[str] = (),
    held_out: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``test.parquet`` and return their paths.

    Args:
        families: reasoning-gym family → its settings.
        train: rows of the training file.
        test: rows of the test file; its questions occur nowhere in the training file.
        seed: the same seed gives the same files.
        out_dir: created if it is not there.
        turns: families in the order in which their problems follow each other, over and over; by default once each.
        held_out: families of the test file, in their order; by default as in the training file.
    """
    if not families:
        raise ValueError("families: name at least one reasoning-gym family")
    streams = {name: problems(name, settings, seed) for name, settings in families.items()}
    seen: set[str] = set()
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "train.parquet", folder / "test.parquet")
    turns = turns or list(families)
    # The test rows come first: asking for more training rows later leaves the test set as it was.
    for path, split, size, order in ((paths[1], "test", test, held_out or turns), (paths[0], "train", train, turns)):
        names = list(islice(cycle(order), size))
        rows = [_row(_next_unseen(streams[name], seen, name), name, index, split) for index, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    return paths


def problems(family: str, settings: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """An endless stream of a family's problems, each with a ``solution``."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("reasoning-gym is not installed: pip install 'paced-verl[tasks]'") from error
    dataset = reasoning_gym.create_dataset(family, seed=seed, **settings)
    index = 0
    while True:
        problem = dataset[index]
        problem["solution"] = worked_solution(family, problem)
        yield problem
        index += 1


def worked_solution(family: str, problem: dict[str, Any]) -> str:
    """How a good student would write the problem down: short, ending in the answer."""
    if family == "spell_backward":
        return problem["answer"]
    if family == "chain_sum":
        return _partial_sums(problem["metadata"]["expression"])
    if family == "gsm_symbolic":
        steps = problem["metadata"]["answer_cot"].rsplit("####", 1)[0].strip()
        return f"{steps}\nAnswer: {problem['answer']}"
    return f"Answer: {problem['answer']}"


def _partial_sums(expression: str) -> str:
    """``4 - 1 - 7`` → ``4-1=3;3-7=-4``."""
    total, *rest = expression.split()
    steps = []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = str(int(total) + (int(term) if sign == "+" else -int(term)))
        steps.append(f"{total}{sign}{term}={result}")
        total = result
    return ";".join(steps) or total


def _row(problem: dict[str, Any], family: str, index: int, split: str) -> dict[str, Any]:
    metadata = problem["metadata"]
    levels = metadata.get("difficulty")
    difficulty = {key: metadata[key] for key in levels if key in metadata} if isinstance(levels, dict) else levels
    row: dict[str, Any] = {
        "data_source": PREFIX + family,
        "prompt": [{"role": "user", "content": problem["question"]}],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": problem["answer"]},
        "extra_info": {
            "index": index,
            "split": split,
            "solution": problem["solution"],
            "answer": problem["answer"],
            "difficulty": json.dumps(difficulty),
            "metadata": json.dumps(metadata, default=str),
        },
    }
    score = compute_score(row["data_source"], problem["solution"], problem["answer"], row["extra_info"])
    if score["acc"] != 1.0:
        raise ValueError(f"families.{family}: reasoning-gym does not accept its own answer {problem['answer']!r}")
    return row


def _next_unseen(stream: Iterator[dict[str, Any]], seen: set[str], family: str) -> dict[str, Any]:
    for _ in range(TRIES_PER_ROW):
        problem = next(stream)
        if problem["question"] not in seen:
            seen.add(problem["question"])
            return problem
    raise ValueError(f"families.{family}: too few different questions at these settings; ask for fewer rows")
