"""The file of teacher responses. Those in a column of the data are looked at with its other fields."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig

from paced_verl.checks.data import local_files, number_of_prompts
from paced_verl.config import PacedConfig
from paced_verl.fingerprint import prompt_hash, spread, tokenizer_hash
from paced_verl.targets.files import Origin, read
from paced_verl.targets.store import check_ids, highest_id

KEY = "paced.targets.file"


def stored_targets(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Problems of ``paced.targets.file``; the training files and the student's model have been found to be there."""
    if paced.targets.file is not None:
        yield from _file(config, paced, Path(paced.targets.file))


@dataclass
class _Found:
    """What a file of targets holds, as far as the checks look."""

    highest: int = -1
    responses: int = 0
    hashes: dict[int, str] = field(default_factory=dict)

    @classmethod
    def in_file(cls, path: Path, origin: Origin) -> _Found:
        found = cls()
        for prompt, row in read(path, origin):
            found.highest = max(found.highest, highest_id(row))
            found.responses += len(row.token_ids) > 0
            found.hashes[prompt] = row.prompt_hash
        return found


def _file(config: DictConfig, paced: PacedConfig, path: Path) -> Iterator[str]:
    if path.is_dir():
        yield f"{KEY}={path} is a folder; expected the path of a parquet file, which need not exist yet."
        return
    if why := _unwritable(path.parent):
        yield f"{KEY}={path} cannot be written, and a run adds its responses to it when it ends: {why}."
    if not path.exists():
        return
    tokenizer, vocabulary = _student(config)
    try:
        found = _Found.in_file(path, Origin(tokenizer=tokenizer))
        check_ids(found.highest, vocabulary or found.highest + 1)
    except ValueError as error:
        yield f"{KEY}: {error}"
        return
    if not found.responses:
        yield f"{KEY}={path} holds no response at all. Delete it, and make it again with `paced-verl targets`."
        return
    yield from _of_other_data(config, path, found.hashes)
    # Which rows verl keeps is only known once it has tokenized them all.
    rows = None if config.data.get("filter_overlong_prompts", False) else number_of_prompts(config)
    if paced.targets.column is None and rows is not None and _only_reads(paced) and len(found.hashes) < rows:
        yield (
            f"{KEY}={path} has responses to {len(found.hashes)} of {rows} prompts, and "
            "paced.teacher.backend=reference writes none. Have `paced-verl targets` write the others."
        )


def _unwritable(folder: Path) -> str:
    """Why no file can be written to a folder that may have to be made; empty if one can."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there}: {error.strerror}"


def _student(config: DictConfig) -> tuple[str, int | None]:
    """The hash of the student's tokenizer and its number of token ids; of a model on the hub they are not known yet."""
    path = config.actor_rollout_ref.model.path
    if not Path(path).is_dir():
        return "", None
    from transformers import AutoConfig, AutoTokenizer

    trust = {"trust_remote_code": config.actor_rollout_ref.model.get("trust_remote_code", False)}
    sizes = AutoConfig.from_pretrained(path, **trust).get_text_config()
    return tokenizer_hash(AutoTokenizer.from_pretrained(path, **trust)), sizes.vocab_size


def _of_other_data(config: DictConfig, path: Path, hashes: dict[int, str]) -> Iterator[str]:
    """Look for the prompts of 64 stored responses among the data: in which place, only the driver knows."""
    rows = number_of_prompts(config)
    if rows is None or config.data.get("custom_cls", {}).get("path"):
        return
    if max(hashes) >= rows:
        yield f"{KEY}={path} has a response to prompt {max(hashes)}, but the data have {rows} rows: {_OTHER_DATA}"
        return
    wanted = {hashes[prompt] for prompt in spread(sorted(hashes))} - {""}
    for hashed in _prompt_hashes(config) if wanted else ():
        wanted.discard(hashed)
        if not wanted or not hashed:
            return
    if wanted:
        yield f"{KEY}={path} has responses to prompts that are not in data.train_files: {_OTHER_DATA}"


_OTHER_DATA = "it was made for other data. Make it again with `paced-verl targets`."


def _prompt_hashes(config: DictConfig) -> Iterator[str]:
    """Hashes of all prompts in the training files; empty for one whose messages verl rewrites (images and the like)."""
    key = config.data.get("prompt_key", "prompt")
    media = {config.data.get(f"{name}_key", f"{name}s") for name in ("image", "video", "audio")}
    for file in map(os.path.expanduser, local_files(config, "train_files")):
        with pq.ParquetFile(file) as rows:
            rewritten = not media.isdisjoint(rows.schema_arrow.names)
            for batch in rows.iter_batches(columns=[key]):
                for messages in batch.column(0).to_pylist():
                    yield prompt_hash(messages) if not rewritten and _are_text(messages) else ""


def _are_text(messages: Any) -> bool:
    if not isinstance(messages, list):
        return False
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)


def _only_reads(paced: PacedConfig) -> bool:
    """Whether the run needs teacher responses, and its teacher cannot write them."""
    return paced.teacher.backend == "reference" and any(stage.responses == "teacher" for stage in paced.schedule)
