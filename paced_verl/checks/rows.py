"""The training files, read once and block by block: what their rows lack, and what other checks want of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BLOCK = 2048
"""Rows in memory at once."""
LONGEST = 1000
"""Teacher prompts kept to be tokenized, those with the most text."""
SOURCES = 16
"""Data sources of which a row is kept."""


def blocks(file: str, columns: Sequence[str] | None = None, rows: int = BLOCK) -> Iterator[pa.RecordBatch]:
    """A parquet, JSON or JSONL file in blocks, read as verl reads it.

    Args:
        file: Its path.
        columns: Those to read; those that it lacks are left out. All by default.
        rows: Rows of a block, at most.

    Raises:
        ValueError: JSON that is none, or whose rows differ in type (``pyarrow.ArrowInvalid`` is one).
        OSError: A file that cannot be read.
    """
    if file.endswith(".parquet"):
        # Not buffered ahead: a row group may be as large as the file.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        present = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
        yield from parquet.iter_batches(rows, columns=present)
        return
    import datasets

    lines = datasets.load_dataset("json", data_files=file, split="train", streaming=True)
    for table in lines.with_format("arrow").iter(batch_size=rows):
        present = [name for name in table.column_names if columns is None or name in columns]
        yield from table.select(present).combine_chunks().to_batches()


def schema_of(file: str) -> pa.Schema:
    """Its columns; of JSON, those of its first rows, as verl has it."""
    if file.endswith(".parquet"):
        return pq.read_schema(file)
    first = next(blocks(file), None)
    return pa.schema([]) if first is None else first.schema


def count(file: str) -> int:
    """Its rows: of parquet by its footer, of JSON lines by counting them."""
    if file.endswith(".parquet"):
        return int(pq.read_metadata(file).num_rows)
    with open(file, "rb") as lines:
        if lines.read(1) == b"[":
            return sum(block.num_rows for block in blocks(file))
        lines.seek(0)
        return sum(1 for line in lines if line.strip())


def kind_of(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a field by dotted path; ``None``: there is no such field."""
    kind: pa.DataType = pa.struct(list(schema))
    for name in path.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def values(block: pa.RecordBatch, path: str) -> pa.Array:
    """A field of a block by dotted path; null where it, or what it lies in, is missing."""
    first, *rest = path.split(".")
    array = block.column(first) if first in block.schema.names else pa.nulls(block.num_rows)
    for name in rest:
        inside = pa.types.is_struct(array.type) and array.type.get_field_index(name) >= 0
        array = pc.struct_field(array, name) if inside else pa.nulls(block.num_rows)
    return array


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def lacking(array: pa.Array) -> pa.BooleanArray:
    """Where there is nothing: null, blank text, or an empty list."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_text(array.type):
        empty = pc.equal(pc.utf8_trim_whitespace(array), "")
    elif is_list(array.type):
        empty = pc.equal(pc.list_value_length(array), 0)
    else:
        return pc.is_null(array)
    return pc.fill_null(empty, True)


@dataclass
class Tally:
    """Rows of a file with one thing wrong: how many, and the first."""

    rows: int = 0
    first: int = -1

    def add(self, rows: int, first: int) -> None:
        if rows and self.first < 0:
            self.first = first
        self.rows += rows

    def of(self, total: int, file: str) -> str:
        """``312 of 17,398 rows of FILE``."""
        return f"{self.rows:,} of {total:,} rows of {file}"

    @property
    def where(self) -> str:
        return f"the first is row {self.first:,}, counted from 0"


@dataclass(frozen=True)
class Which:
    """Rows by the value of a column.

    Attributes:
        column: Its name.
        values: As text.
        others: Whether the rows of all other values are meant, those without one among them.
    """

    column: str
    values: tuple[str, ...]
    others: bool = False

    def of(self, block: pa.RecordBatch) -> pa.BooleanArray:
        """Where a block has such rows."""
        text = as_text(values(block, self.column))
        there = pc.fill_null(pc.is_in(text, value_set=pa.array(self.values, pa.string())), False)
        return pc.invert(there) if self.others else there


def as_text(array: pa.Array) -> pa.Array:
    """Values of any simple type as text."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.string())


@dataclass(frozen=True)
class Need:
    """A field that rows must have.

    Attributes:
        path: Its dotted path.
        why: The sentence that says who reads it, and what to do.
        rows: Those that need it; ``None``: all do.
        text: Whether it must be text.
        all_rows: ``False``: it is enough that one row has it.
    """

    path: str
    why: str
    rows: Which | None = None
    text: bool = False
    all_rows: bool = True


@dataclass
class Longest:
    """The teacher prompts with the most text, a bounded number of them."""

    heap: list[tuple[int, int, list[dict[str, Any]]]] = field(default_factory=list)
    seen: int = 0

    def add(self, messages: list[dict[str, Any]]) -> None:
        size = sum(len(str(message["content"])) for message in messages)
        self.seen += 1  # breaks ties: messages do not compare
        push = heapq.heappush if len(self.heap) < LONGEST else heapq.heappushpop
        push(self.heap, (size, self.seen, messages))

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (messages for _, _, messages in self.heap)


def each_row(block: pa.RecordBatch, mask: pa.BooleanArray) -> Iterable[tuple[int, dict[str, Any]]]:
    """The rows of a block where the mask holds, with their places in it."""
    places = pc.indices_nonzero(mask)
    return zip(places.to_pylist(), block.take(places).to_pylist(), strict=True)
