"""Which capability each prompt trains, by a column of the data, and which prompts are set apart to probe each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paced_verl.errors import PacedError, nearest

IntArray = npt.NDArray[np.int64]
MOST = 1000
"""Capabilities, at most: a column with more values than that names something else."""


@dataclass(frozen=True)
class Capabilities:
    """The prompts of a run by capability.

    Attributes:
        names: Of the capabilities, C.
        groups: Capability of each training prompt, int16 (N,), as the place of its name; −1: set apart, never trained.
        column: Where the names come from.
        probes: Places of the prompts that probe each one, int64, ascending, one array a capability.
        alike: Names of capabilities most of whose training prompts have a template of a probe.
    """

    names: tuple[str, ...]
    groups: npt.NDArray[np.int16]
    column: str
    probes: tuple[IntArray, ...] = ()
    alike: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, values: Any, column: str = "data_source", match: Mapping[str, Sequence[str | int]] | None = None
    ) -> Capabilities:
        """Take the capabilities of prompts from a column.

        Args:
            values: The column of the training prompts, in their order: anything that pyarrow makes an array of, (N,).
            column: Its name, for errors.
            match: Which values are which capability's; ``None``: each value is a capability of its own, by its name.

        Raises:
            PacedError: A prompt matches no capability or two, or a capability has no prompts.
        """
        codes, known = codes_of(values)
        if match is None:
            if len(known) > MOST or not known:
                raise PacedError(
                    f"the column {column} has {len(known):,} values, and each would be a capability: expected 1 to "
                    f"{MOST:,}. Name another column, or say which values belong together (paced.capability.match)."
                )
            match = {value: (value,) for value in sorted(known)}
        groups = _match(codes, known, match, column)
        if (lost := np.flatnonzero(groups < 0)).size:
            raise PacedError(_unmatched(codes[lost], known, lost, len(groups), column, match))
        sizes = np.bincount(groups, minlength=len(match))
        for (name, wanted), size in zip(match.items(), sizes, strict=True):
            if not size:
                have = ", ".join(sorted(known)[:20])
                raise PacedError(
                    f"capability {name!r} has no prompts: none has {' or '.join(repr(str(v)) for v in wanted)} in "
                    f"the column {column}. The training data have: {have}. Correct its values, or leave it out."
                )
        return cls(tuple(match), groups, column)

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

    def required(self, weights: Mapping[str, float] | None) -> npt.NDArray[np.float64]:
        """A requirement as shares, float64 (C,) that sum to 1: all alike where none is written.

        Raises:
            PacedError: It names a capability that is not there.
        """
        found = np.ones(len(self.names)) if weights is None else self.vector(weights)
        return np.asarray(found / found.sum())

    def set_apart(
        self, count: int, hashes: Sequence[str], seed: int = 0, templates: Sequence[str] | None = None
    ) -> Capabilities:
        """With probes drawn at random, which are not trained, nor is any prompt that equals one of them.

        Nor is a prompt that has a probe's template, such as one with other numbers in the same sentence; but where that
        is most of what a capability has, as where one generator wrote it, these are trained, and the capability is
        among those that are :attr:`alike`. Images are not compared.

        Args:
            count: Of each capability.
            hashes: Of each training prompt (:func:`paced_verl.fingerprint.prompt_hash`), (N,).
            seed: The same seed chooses the same rows.
            templates: Of each training prompt (:func:`paced_verl.fingerprint.template_hash`), (N,); ``None``: not
                looked at.

        Raises:
            PacedError: A capability would have no prompt left to train.
        """
        groups, probes = self.groups.copy(), []
        for group, name in enumerate(self.names):
            rows = np.flatnonzero(self.groups == group)
            if len(rows) <= count:
                raise PacedError(
                    f"capability {name!r} wants {count} probe prompts, but has {len(rows)} training prompts, and one "
                    "at least must be left to train. Lower paced.capability.probe.prompts, or add rows."
                )
            # A stream of its own: another capability's number of rows changes nothing here.
            rng = np.random.default_rng((seed, *name.encode()))
            probes.append(np.sort(rng.choice(rows, count, replace=False)))
        held_out = {hashes[row] for rows in probes for row in rows.tolist()}
        groups[[row for row, hashed in enumerate(hashes) if hashed in held_out]] = -1
        alike = [] if templates is None else self._without_templates(groups, probes, templates)
        apart = replace(self, groups=groups, probes=tuple(probes), alike=tuple(alike))
        for name, size in zip(self.names, apart.sizes, strict=True):
            if not size:
                raise PacedError(
                    f"capability {name!r}: every training prompt equals one of its {count} probes, so none is left to "
                    "train. Lower paced.capability.probe.prompts, or add rows."
                )
        return apart

    def _without_templates(
        self, groups: npt.NDArray[np.int16], probes: Sequence[IntArray], templates: Sequence[str]
    ) -> list[str]:
        """Set apart what has a probe's template, in place; names of the capabilities that would lose most by it."""
        held_out = {templates[row] for rows in probes for row in rows.tolist()}
        has_one = np.array([template in held_out for template in templates], bool)
        alike = []
        for group, name in enumerate(self.names):
            rows = np.flatnonzero(groups == group)
            twins = rows[has_one[rows]]
            if 2 * len(twins) > len(rows):
                alike.append(name)
            else:
                groups[twins] = -1
        return alike


def codes_of(values: Any) -> tuple[npt.NDArray[np.int32], list[str]]:
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


def _match(
    codes: npt.NDArray[np.int32], known: Sequence[str], match: Mapping[str, Sequence[str | int]], column: str
) -> npt.NDArray[np.int16]:
    """The capability of each row, −1 where it matches none.

    Raises:
        PacedError: Two capabilities match one value.
    """
    owner: dict[str, int] = {}
    names = list(match)
    for group, (name, wanted) in enumerate(match.items()):
        for value in dict.fromkeys(map(str, wanted)):
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
    match: Mapping[str, Sequence[str | int]],
) -> str:
    seen, count = np.unique(codes, return_counts=True)
    most = np.argsort(-count, kind="stable")[:5]
    values = [f"{known[seen[i]]!r} ({count[i]:,})" if seen[i] >= 0 else f"nothing ({count[i]:,})" for i in most]
    more = f" and {len(seen) - len(most)} other values" if len(seen) > len(most) else ""
    return (
        f"{len(rows):,} of {total:,} training prompts match no capability: their column {column} has "
        f"{', '.join(values)}{more}; the first is row {rows[0]:,}, counted from 0. Add the values to a "
        f"capability ({', '.join(list(match)[:20])}), or leave the rows out."
    )
