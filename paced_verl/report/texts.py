"""What prompts say, and the teacher's stored responses: from the training files and the last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.fingerprint import fingerprint, prompt_hash, spread
from paced_verl.report.run import Run
from paced_verl.targets.files import Row
from paced_verl.targets.store import read_parts


@dataclass(frozen=True)
class Texts:
    """What is known of some prompts.

    Attributes:
        prompts: Messages by position, one text each.
        responses: The stored response by position, and whether it was correct.
        missing: Why prompts have no text; empty where they have.
    """

    prompts: dict[int, str]
    responses: dict[int, tuple[str, bool | None]]
    missing: str = ""


def read_texts(run: Run, wanted: Sequence[int]) -> Texts:
    """The texts of the prompts at these positions of the training set, as far as they are still there."""
    stored = _stored(run, wanted)
    responses = {prompt: (row.response.decode(), row.correct) for prompt, row in stored.items() if len(row.token_ids)}
    column, missing = _prompts(run)
    if column is None:
        return Texts({}, responses, missing)
    places = _order(run, column)
    if places is None:
        prompts = _by_hash(column, {row.prompt_hash: prompt for prompt, row in stored.items() if row.prompt_hash})
        missing = (
            "verl left out prompts that were too long, or the training files have changed: which row is which prompt "
            "is known only where a teacher response is stored."
        )
    else:
        prompts = {prompt: column[int(places[prompt])].as_py() for prompt in wanted}
    return Texts({prompt: as_text(messages) for prompt, messages in prompts.items()}, responses, missing)


def as_text(messages: Any) -> str:
    """Messages as a person reads them: the contents, with roles where there is more than one."""
    if not isinstance(messages, list):
        return str(messages)
    contents = [(str(message.get("role", "")), str(message.get("content", ""))) for message in messages]
    if len(contents) == 1:
        return contents[0][1]
    return "\n\n".join(f"[{role}] {content}" for role, content in contents)


def _stored(run: Run, wanted: Sequence[int]) -> Mapping[int, Row]:
    """Of the last checkpoint that has any."""
    folders = [folder / "targets" for folder in run.folders.values() if (folder / "targets" / "parts.json").is_file()]
    return read_parts(folders[-1], set(wanted)) if folders else {}


def _prompts(run: Run) -> tuple[pa.ChunkedArray | None, str]:
    """The prompts of the training files in a row, or why there are none."""
    named, key = run.setting("data.train_files", []), run.setting("data.prompt_key", "prompt")
    columns = []
    for file in [named] if isinstance(named, str) else named:
        try:
            columns.append(pq.read_table(Path(file).expanduser(), columns=[key])[key])
        except (OSError, pa.ArrowException, KeyError) as error:
            return None, f"The training file {file} cannot be read ({type(error).__name__}): prompts have no text here."
    if not columns:
        return None, "The run's training files are not known: prompts have no text here."
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks]), ""


def _order(run: Run, column: pa.ChunkedArray) -> np.ndarray | None:
    """The row of each prompt as verl 0.9.1 takes them (``RLHFDataset``); ``None`` if they are other prompts."""
    most, total = run.setting("data.train_max_samples", -1), len(column)
    places = np.arange(total)
    if 0 < most < total:
        rng = np.random.default_rng(run.setting("data.seed"))
        places = rng.choice(total, size=most, replace=False) if run.setting("data.shuffle", False) else places[:most]
    if len(places) != run.record.get("prompts"):
        return None
    named = fingerprint(column[int(places[place])].as_py() for place in spread(range(len(places))))
    return places if named == run.record.get("fingerprint") else None


def _by_hash(column: pa.ChunkedArray, wanted: Mapping[str, int]) -> dict[int, Any]:
    """Prompts by the hashes that stored responses carry."""
    if not wanted:
        return {}
    found = ((prompt_hash(messages), messages) for messages in column.to_pylist())
    return {wanted[name]: messages for name, messages in found if name in wanted}
