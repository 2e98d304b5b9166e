"""Stored teacher responses y_T: taken from the data or from a file, added to as a run generates them, saved and reused.

One writer, the trainer on the driver (or ``paced-verl targets`` ahead of a run). A prompt is its position in the
training set, with a hash of its text so that a file made for other data is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paced_verl.atomic import replacing
from paced_verl.errors import PacedError
from paced_verl.fingerprint import prompt_hash, spread
from paced_verl.targets.files import Origin, Outcomes, Row, read, write

_LIST = "parts.json"
_Version = tuple[int, int, int]


@dataclass(frozen=True)
class Target:
    """A teacher response in the student's tokens, end of sequence included. No tokens: none could be had, skip it."""

    token_ids: tuple[int, ...]
    response: str = ""
    correct: bool | None = None
    prompt_hash: str = ""
    tries: int = 1
    """Responses that were written until this one was kept, or none."""


@dataclass(frozen=True)
class _Part:
    """A parquet file of a saved store. It is written once: its name stands for the same rows in every folder."""

    path: Path
    prompts: frozenset[int]

    def put_in(self, folder: Path) -> _Part:
        """The same file in another folder: a hard link, or a copy where there can be none."""
        there = folder / self.path.name
        if not there.exists():
            try:
                os.link(self.path, there)
            except OSError:  # another file system, or one without links
                with replacing(there) as temporary:
                    shutil.copyfile(self.path, temporary)
        return _Part(there, self.prompts)


class TargetStore:
    """Teacher responses by prompt; int32 ids and UTF-8 text in memory.

    A checkpoint keeps a folder of parquet files (:meth:`save_parts`), ``targets.file`` is one (:meth:`save`).

    Args:
        origin: Written into files; a file of another origin is refused.
    """

    def __init__(self, origin: Origin = Origin()) -> None:  # noqa: B008 (immutable)
        self.origin = origin
        self._rows: dict[int, Row] = {}
        # The rows of the parts, read in this order, and then the unsaved ones, are what the store holds.
        self._parts: list[_Part] = []
        self._unsaved: set[int] = set()
        self._versions: dict[Path, _Version | None] = {}  # of single files, as they were read or written here

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, prompt: int) -> bool:
        return prompt in self._rows

    def __getitem__(self, prompt: int) -> Target:
        row = self._rows[prompt]
        return Target(tuple(row.token_ids.tolist()), row.response.decode(), row.correct, row.prompt_hash, row.tries)

    def has_response(self, prompt: int) -> bool:
        """Whether there is a response, and not only the knowledge that none could be had."""
        return prompt in self._rows and len(self._rows[prompt].token_ids) > 0

    def outcomes(self) -> Outcomes:
        """Of prompts whose response was judged."""
        judged = [(prompt, row.correct, row.tries) for prompt, row in self._rows.items() if row.correct is not None]
        return Outcomes(*np.array(judged, np.int64).reshape(-1, 3).T)

    @property
    def responses(self) -> int:
        """Number of prompts that have a response."""
        return sum(map(self.has_response, self._rows))

    def add(self, prompt: int, target: Target) -> None:
        """Store a response; a later one for the same prompt replaces it."""
        ids = np.array(target.token_ids, np.int32)
        self._rows[prompt] = Row(ids, target.response.encode(), target.correct, target.prompt_hash, target.tries)
        self._unsaved.add(prompt)

    def get(self, prompt: int, messages: Sequence[Mapping[str, Any]]) -> Target | None:
        """The stored response of a prompt.

        Raises:
            PacedError: The stored response belongs to another problem.
        """
        if prompt not in self._rows:
            return None
        self._check_prompt(prompt, messages)
        return self[prompt]

    def _check_prompt(self, prompt: int, messages: Sequence[Mapping[str, Any]]) -> None:
        stored = self._rows[prompt].prompt_hash
        if stored and stored != prompt_hash(messages):
            raise PacedError(
                f"The stored teacher response of prompt {prompt} was made for another problem: paced.targets.file does "
                "not belong to data.train_files, or the data were reordered or filtered differently. Make it again "
                "with `paced-verl targets`."
            )

    def check(self, dataset: Any, vocabulary: int) -> None:
        """Look whether the responses can belong to a data set, by prompts spread evenly over them.

        Args:
            dataset: verl's, by position.
            vocabulary: Number of token ids that the student knows.

        Raises:
            PacedError: They cannot.
        """
        prompts = sorted(self._rows)
        if prompts and prompts[-1] >= len(dataset):
            raise PacedError(
                f"A teacher response is stored for prompt {prompts[-1]}, but the data have {len(dataset)} prompts: "
                "paced.targets.file does not belong to data.train_files. Make it again with `paced-verl targets`."
            )
        for prompt in spread(prompts):
            self._check_prompt(prompt, dataset[prompt]["raw_prompt"])
        check_ids(max((highest_id(row) for row in self._rows.values()), default=-1), vocabulary)

    def save(self, file: str | Path) -> None:
        """Write all responses to one parquet file, atomically.

        What another run has put into the file since it was read or written here stays, where this store has no response
        of its own. (Two that write at the very same moment do not see each other.)

        Raises:
            PacedError: It has become a file of another data set or tokenizer.
        """
        file = Path(file)
        others: dict[int, Row] = {}
        if _version(file) not in (None, self._versions.get(file)):
            others = {prompt: row for prompt, row in read(file, self.origin) if prompt not in self._rows}
        write(file, sorted((others | self._rows).items()), self.origin)
        self._versions[file] = _version(file)

    def save_parts(self, folder: str | Path) -> None:
        """Save to a folder: what came since the last save is written, parts that were saved before are linked to.

        The folder can do without any other one. Its list of parts is written last and atomically: until then it holds
        what it held before. A part that was deleted where it was last saved is written anew.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [part for part in self._parts if part.path.exists()]
        lost = [part for part in self._parts if part not in kept]
        parts = [part.put_in(folder) for part in kept]
        if prompts := self._unsaved.union(*(part.prompts for part in lost)):
            part = _Part(folder / f"{uuid.uuid4().hex}.parquet", frozenset(prompts))
            write(part.path, [(prompt, self._rows[prompt]) for prompt in sorted(prompts)], self.origin)
            parts.append(part)
        names = [part.path.name for part in parts]
        with replacing(folder / _LIST) as temporary:
            temporary.write_text(json.dumps(names))
        self._parts, self._unsaved = parts, set()
        for file in folder.glob("*.parquet*"):  # of a save that was killed, or of a run that was taken up before this
            if file.name not in names:
                file.unlink()

    def load(self, path: str | Path) -> None:
        """Add all responses of a file, or of a folder that :meth:`save_parts` has written; they replace those here.

        Raises:
            PacedError: It holds no teacher responses, or those of another data set or tokenizer.
        """
        path = Path(path)
        if not path.is_dir():
            version = _version(path)  # before it is read: what replaces it meanwhile is another one
            self._unsaved |= self._read(path)
            self._versions[path] = version
            return
        parts = [_Part(file, self._read(file)) for file in _parts_of(path)]
        # What was here before and is not in these parts has to be in the next save, too.
        self._unsaved.update(*(part.prompts for part in self._parts))
        self._unsaved.difference_update(*(part.prompts for part in parts))
        self._parts = parts

    def _read(self, file: Path) -> frozenset[int]:
        rows = dict(read(file, self.origin))
        self._rows.update(rows)
        return frozenset(rows)


def _version(file: Path) -> _Version | None:
    """Another one where a file was replaced or changed; ``None`` where there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_parts(folder: str | Path, prompts: Set[int]) -> dict[int, Row]:
    """The responses of some prompts from a folder that :meth:`TargetStore.save_parts` has written, the others unread.

    Raises:
        PacedError: It holds no teacher responses.
    """
    found: dict[int, Row] = {}
    for file in _parts_of(Path(folder)):
        found.update((prompt, row) for prompt, row in read(file, Origin()) if prompt in prompts)
    return found


def _parts_of(folder: Path) -> list[Path]:
    """The files of a saved folder, in their order."""
    try:
        return [folder / name for name in json.loads((folder / _LIST).read_text())]
    except (OSError, ValueError) as error:
        raise PacedError(f"{folder} holds no teacher responses of a checkpoint ({error}).") from None


def highest_id(row: Row) -> int:
    """The highest token id of a response; −1 if it has none."""
    return int(row.token_ids.max(initial=-1))


def check_ids(highest: int, vocabulary: int) -> None:
    """Raise a :class:`PacedError` where a stored token id is none of the student's.

    Args:
        highest: The highest one of all responses.
        vocabulary: Number of token ids that the student knows.
    """
    if highest >= vocabulary:
        raise PacedError(
            f"A stored teacher response has the token id {highest}, but the student knows the ids below {vocabulary}: "
            "paced.targets.file was made with another tokenizer. Make it again with `paced-verl targets`."
        )


def column(row: Mapping[str, Any], path: str) -> Any:
    """A field of a row by dotted path, ``None`` where it is missing."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def response_in(row: Mapping[str, Any], path: str) -> str | None:
    """The response that a row of the data brings (``targets.column``); ``None`` where that is missing or blank.

    Raises:
        PacedError: It is not text.
    """
    value = column(row, path)
    if value is not None and not isinstance(value, str):
        raise PacedError(f"paced.targets.column={path}: expected the text of a response, found {value!r}.")
    return value if value and value.strip() else None
