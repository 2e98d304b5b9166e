"""Stored teacher responses y_T: taken from the data or from a file, added to as a run generates them, saved and reused.

One writer, the trainer on the driver (or ``paced-verl targets`` ahead of a run). A prompt is its position in the
training set, with a hash of its text so that a file made for other data is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("prompt_hash", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("response", pa.string()),
        ("correct", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Target:
    """A teacher response in the student's tokens, end of sequence included. No tokens: none could be had, skip it."""

    token_ids: tuple[int, ...]
    response: str = ""
    correct: bool | None = None
    prompt_hash: str = ""


def prompt_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """A short hash of messages, the same in every process: of images and the like it knows the kind only."""
    contents = [[message["role"], message["content"]] for message in messages]
    text = json.dumps(contents, default=lambda medium: type(medium).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TargetStore:
    """Teacher responses by prompt."""

    def __init__(self) -> None:
        self._targets: dict[int, Target] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._targets

    def __getitem__(self, prompt: int) -> Target:
        return self._targets[prompt]

    def add(self, prompt: int, target: Target) -> None:
        """Store a response; a later one for the same prompt replaces it."""
        self._targets[prompt] = target

    def get(self, prompt: int, messages: Sequence[Mapping[str, Any]]) -> Target | None:
        """The stored response of a prompt.

        Raises:
            ValueError: The stored response belongs to another problem.
        """
        target = self._targets.get(prompt)
        if target is not None and target.prompt_hash and target.prompt_hash != prompt_hash(messages):
            raise ValueError(
                f"The stored teacher response of prompt {prompt} was made for another problem: paced.targets.file does "
                "not belong to data.train_files, or the data were reordered or filtered differently. Make it again "
                "with `paced-verl targets`."
            )
        return target

    def save(self, path: str | Path) -> None:
        """Write all responses to a parquet file, atomically."""
        rows = sorted(self._targets.items())
        table = pa.table(
            {
                "prompt": [prompt for prompt, _ in rows],
                "prompt_hash": [target.prompt_hash for _, target in rows],
                "token_ids": [list(target.token_ids) for _, target in rows],
                "response": [target.response for _, target in rows],
                "correct": [target.correct for _, target in rows],
            },
            schema=_SCHEMA,
        )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(table, temporary)
        os.replace(temporary, path)

    def load(self, path: str | Path) -> None:
        """Add all responses of a file.

        Raises:
            ValueError: Not a file of teacher responses.
        """
        try:
            table = pq.read_table(path, schema=_SCHEMA)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ValueError(
                f"paced.targets.file={path} is not a file of teacher responses ({error}). "
                f"Expected the columns {', '.join(_SCHEMA.names)}; make one with `paced-verl targets`."
            ) from None
        for row in table.to_pylist():
            self.add(
                row["prompt"], Target(tuple(row["token_ids"]), row["response"], row["correct"], row["prompt_hash"])
            )


def column(row: Mapping[str, Any], path: str) -> Any:
    """A field of a row by dotted path, ``None`` where it is missing."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
