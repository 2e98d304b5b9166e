"""Rows of runs: a file each, so that whatever is killed goes on where it was, and tables of them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from paced_verl.atomic import replacing

Row = dict[str, Any]
Result = TypeVar("Result")


def fingerprint(sources: Iterable[Path]) -> str:
    """Of the code that makes a run: rows of other code are no rows of a programme."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:8]


def write(row: Row, file: Path) -> None:
    """Keep a row."""
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(row))


def read(folder: Path) -> list[Row]:
    """The rows of a folder, in a fixed order."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def restore(rows: Iterable[Row], code: str, place: Callable[[Row], Path]) -> None:
    """Put rows of this code that are in a committed table back where they belong, so that they are not run again."""
    for row in rows:
        if row["code"] == code and not place(row).exists():
            write(row, place(row))


def write_table(rows: Sequence[Row], file: Path) -> None:
    """Write rows to a table that is small enough to be committed."""
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(file, compression_level=19)


def in_processes(work: Callable[..., Result], jobs: Sequence[Sequence[Any]], processes: int) -> Iterator[Result]:
    """What ``work`` returns for each job's arguments, as it is done, some at a time."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(work, *job) for job in jobs]):
            yield done.result()
