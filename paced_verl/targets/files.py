"""Teacher responses as parquet: what a file holds, whose it is, how it is read and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paced_verl.atomic import replacing
from paced_verl.errors import PacedError

SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("prompt_hash", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("response", pa.string()),
        ("correct", pa.bool_()),
        ("tries", pa.int32()),
    ]
)
_BATCH = 256  # rows that are in memory twice: 16 MB of ids at 16,000 tokens a row


class Origin(NamedTuple):
    """Whose responses these are; empty where that is not known, which matches anything."""

    data: str = ""
    """Names the data set: :func:`paced_verl.targets.store.fingerprint`."""
    tokenizer: str = ""
    """Names the student's tokens: :func:`paced_verl.targets.store.tokenizer_hash`."""


class Row(NamedTuple):
    """A response as it is held in memory."""

    token_ids: npt.NDArray[np.int32]
    response: bytes
    """UTF-8: one sign outside Latin-1 makes Python's text two or four times as large."""
    correct: bool | None
    prompt_hash: str
    tries: int = 1


def write(path: Path, rows: Sequence[tuple[int, Row]], origin: Origin) -> None:
    """Write rows, by prompt, to a file: all of them or nothing."""
    schema = SCHEMA.with_metadata({f"paced_verl.{key}": value for key, value in origin._asdict().items()})
    # A dictionary of token ids would cost more time than it saves space.
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for start in range(0, len(rows), _BATCH):
            writer.write_batch(_to_batch(rows[start : start + _BATCH]))


def _to_batch(rows: Sequence[tuple[int, Row]]) -> pa.RecordBatch:
    token_ids = [row.token_ids for _, row in rows]
    offsets = np.cumsum([0, *map(len, token_ids)], dtype=np.int32)
    columns = [
        pa.array([prompt for prompt, _ in rows], pa.int64()),
        pa.array([row.prompt_hash for _, row in rows], pa.string()),
        pa.ListArray.from_arrays(offsets, np.concatenate(token_ids)),
        pa.array([row.response for _, row in rows], pa.binary()).cast(pa.string()),
        pa.array([row.correct for _, row in rows], pa.bool_()),
        pa.array([row.tries for _, row in rows], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def read(path: Path, origin: Origin) -> Iterator[tuple[int, Row]]:
    """The rows of a file, by prompt; few of them in memory at a time.

    Raises:
        PacedError: Not a file of teacher responses, or one of another data set or tokenizer.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow.names
            if missing := [name for name in SCHEMA.names if name not in (*found, "tries")]:
                raise pa.ArrowInvalid(f"it has no column {missing[0]}")
            _check_origin(path, file.schema_arrow.metadata or {}, origin)
            for batch in file.iter_batches(_BATCH, columns=[name for name in SCHEMA.names if name in found]):
                yield from _rows(_with_tries(batch).select(SCHEMA.names).cast(SCHEMA))
    except (OSError, pa.ArrowException) as error:
        raise PacedError(
            f"{path} is not a file of teacher responses ({error}). Expected the columns {', '.join(SCHEMA.names)}; "
            "make one with `paced-verl targets`."
        ) from None


class Outcomes(NamedTuple):
    """Of prompts whose response was judged: how many of its tries are correct (0 or 1), and its tries; int64 (R,)."""

    prompts: npt.NDArray[np.int64]
    correct: npt.NDArray[np.int64]
    tries: npt.NDArray[np.int64]


def read_outcomes(path: Path) -> Outcomes:
    """Those of a file, its responses unread.

    Raises:
        PacedError: Not a file of teacher responses.
    """
    found = Outcomes(*(np.empty(0, np.int64) for _ in Outcomes._fields))
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in ("prompt", "correct", "tries") if name in file.schema_arrow.names]
            for batch in map(_with_tries, file.iter_batches(columns=names)):
                rows = batch.filter(batch["correct"].is_valid()).select(["prompt", "correct", "tries"])
                new = (column.cast(pa.int64()).to_numpy(zero_copy_only=False) for column in rows.columns)
                found = Outcomes(*map(np.append, found, new))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise PacedError(f"{path} is not a file of teacher responses ({error}).") from None
    return found


def _with_tries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """One a row, where a file does not say."""
    if "tries" in batch.schema.names:
        return batch
    return batch.append_column("tries", pa.array(np.ones(len(batch), np.int32)))


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[int, Row]]:
    lists = batch["token_ids"]
    nulls = [name for name in SCHEMA.names if name != "correct" and batch[name].null_count]
    if nulls or lists.values.null_count:
        raise pa.ArrowInvalid(f"null in column {(nulls or ['token_ids'])[0]}")
    if min(pc.min(lists.values).as_py() or 0, pc.min(batch["prompt"]).as_py() or 0) < 0:
        raise pa.ArrowInvalid("a negative prompt or token id")
    names = ("prompt", "prompt_hash", "correct", "tries")
    prompts, hashes, correct, tries = (batch[name].to_pylist() for name in names)
    responses = batch["response"].cast(pa.binary()).to_pylist()
    token_ids = np.split(lists.values.to_numpy(), lists.offsets.to_numpy())[1:-1]
    return zip(prompts, map(Row, token_ids, responses, correct, hashes, tries), strict=True)


def _check_origin(path: Path, metadata: dict[bytes, bytes], origin: Origin) -> None:
    found = Origin(*(metadata.get(f"paced_verl.{key}".encode(), b"").decode() for key in Origin._fields))
    if origin.data and found.data not in ("", origin.data):
        raise PacedError(
            f"{path}: expected teacher responses for data set {origin.data}, found those for {found.data}: the prompts "
            "are others, in another order, or filtered differently. Point to the file of this data set, or make it "
            "again with `paced-verl targets`."
        )
    if origin.tokenizer and found.tokenizer not in ("", origin.tokenizer):
        raise PacedError(
            f"{path}: expected token ids of the student's tokenizer {origin.tokenizer}, found those of "
            f"{found.tokenizer}: they stand for other text. Point to a file made for this student, or make it again "
            "with `paced-verl targets`."
        )
