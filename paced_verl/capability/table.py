"""Which capability each prompt trains, by a column of the data, and the held-out prompts that probe each one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from paced_verl.errors import PacedError, nearest
from paced_verl.fingerprint import prompt_hash

IntArray = npt.NDArray[np.int64]
MOST = 1000
"""Capabilities, at most: a column with more values than that names something else."""


class Rule(BaseModel):
    """Which prompts are a capability's.

    Attributes:
        match: Values of the column; by default the capability's own name.
        probe: Held-out prompts that probe it.
        teacher: Key of the teacher that its rows name; ``None``: the data say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: Annotated[tuple[str | int, ...], Field(min_length=1)] | None = None
    probe: Annotated[int, Field(strict=True, ge=1)] = 128
    teacher: str | None = None


def read_rules(file: Path) -> dict[str, Rule]:
    """The rules of a YAML file ``{name: {match: [values], probe: 128, teacher: key}}``, by capability.

    Raises:
        PacedError: It cannot be read, or holds something else; it names the key.
    """
    try:
        block = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PacedError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(block, dict) or not block or not all(isinstance(name, str) and name for name in block):
        raise PacedError(
            f"{file}: expected capabilities by name: {{code: {{match: [value of the column], probe: 128}}}}."
        )
    try:
        return TypeAdapter(dict[str, Rule]).validate_python({name: rule or {} for name, rule in block.items()})
    except ValidationError as error:
        lines = [f"{file}: {'.'.join(map(str, each['loc']))}: {_words(each)}." for each in error.errors()]
        raise PacedError("\n".join(dict.fromkeys(lines))) from None


def _words(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        known = list(Rule.model_fields)
        return f"not a key of a capability. {nearest(str(problem['loc'][-1]), known)}".rstrip(".")
    return f"{problem['msg'].replace('Input should be', 'expected')}, got {problem['input']!r}"


@dataclass(frozen=True)
class Capabilities:
    """The prompts of a run by capability.

    Attributes:
        names: Of the capabilities, C.
        groups: Capability of each training prompt, int16 (N,), as the place of its name; −1: set apart as a probe.
        teachers: The key of each one's teacher, (C,); ``None``: the data say.
        wanted: Probe prompts of each, (C,).
        probes: Their places, int64, ascending, one array a capability: among the validation rows, or, where they are
            set apart, among the training prompts. Empty arrays as long as nobody has chosen.
    """

    names: tuple[str, ...]
    groups: npt.NDArray[np.int16]
    teachers: tuple[str | None, ...]
    wanted: tuple[int, ...]
    column: str
    rules: Mapping[str, Rule]
    probes: tuple[IntArray, ...] = ()

    @classmethod
    def read(cls, values: Any, column: str = "data_source", rules: Mapping[str, Rule] | None = None) -> Capabilities:
        """Take the capabilities of prompts from a column.

        Args:
            values: The column of the training prompts, in their order: anything that pyarrow makes an array of, (N,).
            column: Its name, for errors.
            rules: Which values are which capability's; ``None``: each value is a capability of its own, by its name.

        Raises:
            PacedError: A prompt matches no capability or two, or a capability has no prompts.
        """
        codes, known = _codes(values)
        if rules is None:
            if len(known) > MOST or not known:
                raise PacedError(
                    f"the column {column} has {len(known):,} values, and each would be a capability: expected 1 to "
                    f"{MOST:,}. Name another column, or write a file that says which values belong together."
                )
            rules = {value: Rule() for value in sorted(known)}
        groups = _match(codes, known, rules, column)
        if (lost := np.flatnonzero(groups < 0)).size:
            raise PacedError(_unmatched(codes[lost], known, lost, len(groups), column, rules))
        sizes = np.bincount(groups, minlength=len(rules))
        for (name, rule), size in zip(rules.items(), sizes, strict=True):
            if not size:
                have = ", ".join(sorted(known)[:20])
                raise PacedError(
                    f"capability {name!r} has no prompts: none has {' or '.join(map(repr, _matches(name, rule)))} in "
                    f"the column {column}. The training data have: {have}. Correct its match, or leave it out."
                )
        given = rules.values()
        teachers, wanted = tuple(rule.teacher for rule in given), tuple(rule.probe for rule in given)
        return cls(tuple(rules), groups, teachers, wanted, column, rules, (np.empty(0, np.int64),) * len(rules))

    @property
    def sizes(self) -> IntArray:
        """Training prompts of each, those that are set apart left out, int64 (C,)."""
        return np.bincount(self.groups[self.groups >= 0], minlength=len(self.names))

    def index(self, name: str) -> int:
        """The place of a capability.

        Raises:
            PacedError: There is none of this name.
        """
        if name not in self.names:
            raise PacedError(f"no capability {name!r}. {nearest(name, self.names)}")
        return self.names.index(name)

    def vector(self, by_name: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Numbers by name as float64 (C,); 0 for a capability that is not named.

        Raises:
            PacedError: A name is no capability.
        """
        found = np.zeros(len(self.names))
        for name, value in by_name.items():
            found[self.index(name)] = value
        return found

    # ------------------------------------------------------------------ probes

    def with_probes(self, values: Any, seed: int = 0) -> Capabilities:
        """With probes drawn at random from validation rows, which are never trained; rows of other values are left.

        Args:
            values: The same column of the validation rows, (V,).
            seed: The same seed chooses the same rows.

        Raises:
            PacedError: A capability has too few validation rows.
        """
        codes, known = _codes(values)
        return replace(self, probes=self._choose(_match(codes, known, self.rules, self.column), seed, spare=0))

    def with_set_apart(self, seed: int = 0) -> Capabilities:
        """With probes drawn at random from the training prompts, which are then not trained: their group is −1.

        Raises:
            PacedError: A capability would have no prompt left to train.
        """
        probes, groups = self._choose(self.groups, seed, spare=1), self.groups.copy()
        groups[np.concatenate(probes)] = -1
        return replace(self, groups=groups, probes=probes)

    def _choose(self, groups: npt.NDArray[np.int16], seed: int, spare: int) -> tuple[IntArray, ...]:
        chosen = []
        for group, (name, probe) in enumerate(zip(self.names, self.wanted, strict=True)):
            rows = np.flatnonzero(groups == group)
            if len(rows) < probe + spare:
                where = "training prompts, and one at least must be left to train" if spare else "validation rows"
                raise PacedError(
                    f"capability {name!r} wants {probe} probe prompts, but has {len(rows)} {where}. "
                    "Lower its probe, or add rows."
                )
            # A stream of its own: another capability's number of rows or probes changes nothing here.
            rng = np.random.default_rng((seed, *name.encode()))
            chosen.append(np.sort(rng.choice(rows, probe, replace=False)))
        return tuple(chosen)


def shared(training: Iterable[Any], probes: Iterable[Any]) -> list[tuple[int, int]]:
    """Probe prompts that are also trained: (place of the probe, place of the training prompt), all there are.

    What is compared are the messages, role and content to the letter (:func:`~paced_verl.fingerprint.prompt_hash`).
    It is not noticed where a prompt only differs in a space, in an image's content, or in the numbers that were filled
    into one sentence: problems of one generator share their template as long as they are of one capability.

    Args:
        training: Messages of every training prompt; those that are set apart left out, or ``None``.
        probes: Messages of every probe prompt.
    """
    places: dict[str, list[int]] = {}
    for place, messages in enumerate(probes):
        places.setdefault(prompt_hash(messages), []).append(place)
    found = []
    for row, messages in enumerate(training):
        if messages is not None:
            found += [(place, row) for place in places.get(prompt_hash(messages), ())]
    return sorted(found)


def levels(values: Any) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The level of each prompt where its data name one, such as paced_verl.tasks' extra_info.difficulty.

    Args:
        values: The column, (N,).

    Returns:
        int32 (N,), the place of its level among the names, which follow; −1: none, or nothing in it.
    """
    codes, known = _codes(values)
    empty = np.array([text.strip() in ("", "{}", "null") for text in known] + [True])
    order = sorted(np.flatnonzero(~empty[:-1]).tolist(), key=lambda code: known[code])
    place = np.full(len(known) + 1, -1, np.int32)
    place[order] = np.arange(len(order))
    return place[codes], [known[code] for code in order]


def _codes(values: Any) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Each value as the place of its text among the different ones; −1 for null."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_null(array.type):
        return np.full(len(array), -1, np.int32), []
    if pa.types.is_dictionary(array.type):  # it may hold values that no row has, or one twice
        array = array.dictionary_decode()
    array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, [str(value) for value in array.dictionary.to_pylist()]


def _matches(name: str, rule: Rule) -> tuple[str, ...]:
    return (name,) if rule.match is None else tuple(map(str, rule.match))


def _match(
    codes: npt.NDArray[np.int32], known: Sequence[str], rules: Mapping[str, Rule], column: str
) -> npt.NDArray[np.int16]:
    """The capability of each row, −1 where it matches none.

    Raises:
        PacedError: Two capabilities match one value.
    """
    owner: dict[str, int] = {}
    names = list(rules)
    for group, (name, rule) in enumerate(rules.items()):
        for value in dict.fromkeys(_matches(name, rule)):
            if value in owner:
                raise PacedError(
                    f"the capabilities {names[owner[value]]!r} and {name!r} both match {value!r} in the column "
                    f"{column}, but a prompt has one capability: leave it to one of them."
                )
            owner[value] = group
    group_of = np.array([*(owner.get(value, -1) for value in known), -1], np.int16)  # the last is null's
    return group_of[codes]


def _unmatched(
    codes: npt.NDArray[np.int32],
    known: Sequence[str],
    rows: IntArray,
    total: int,
    column: str,
    rules: Mapping[str, Rule],
) -> str:
    seen, count = np.unique(codes, return_counts=True)
    most = np.argsort(-count, kind="stable")[:5]
    values = [f"{known[seen[i]]!r} ({count[i]:,})" if seen[i] >= 0 else f"nothing ({count[i]:,})" for i in most]
    more = f" and {len(seen) - len(most)} other values" if len(seen) > len(most) else ""
    return (
        f"{len(rows):,} of {total:,} training prompts match no capability: their column {column} has "
        f"{', '.join(values)}{more}; the first is row {rows[0]:,}, counted from 0. Add the values to the match of a "
        f"capability ({', '.join(list(rules)[:20])}), or leave the rows out."
    )
