"""One pass over the data: every row is looked at once, every teacher prompt is made once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig

from paced_verl.checks.data import (
    SOURCE,
    UNREADABLE,
    contexts,
    describe_error,
    is_own,
    local_files,
    measured,
    needs,
    number_of_prompts,
    scored,
    teacher_keys,
)
from paced_verl.checks.rows import SOURCES, Longest, Need, Tally, Which, as_text, blocks, each_row, lacking, values
from paced_verl.config import PacedConfig, SourceContexts
from paced_verl.errors import nearest
from paced_verl.fingerprint import fingerprint, spread
from paced_verl.teacher.context import TeacherContext

Shown = tuple[str, TeacherContext, Which | None]
"""A setting, the context it names, and the rows that it is for (``None``: any)."""


class Rows:
    """What a pass over the rows found.

    Attributes:
        problems: Sentences.
        longest: The teacher prompts with the most text by the setting that names their context, the privileged alone.
        examples: A row of each of the first data sources, training and validation.
        fingerprint: Names the training prompts, all of them in their order; empty where not all were read.
        by_source: Whether contexts go by data source, and
        sources: if so, the training rows of each.
    """

    def __init__(self, config: DictConfig):
        self.prompt_key = config.data.get("prompt_key", "prompt")
        self.teacher_key = config.distillation.teacher_key
        self.teachers = teacher_keys(config) if "paced" in config else []
        self.problems: list[str] = []
        self.longest: dict[str, Longest] = {}
        self.examples: dict[Any, dict[str, Any]] = {}
        self.fingerprint = ""
        self.by_source = False
        self.sources: Counter[str] = Counter()

    @classmethod
    def read(cls, config: DictConfig, paced: PacedConfig | None) -> Rows:
        """Read the training files, and the validation files that are no training files, too; they must be there.

        Without a block of ours no teacher prompt is made.
        """
        rows = cls(config)
        if is_own(config):
            return rows
        taught = [*contexts(config, paced), *measured(paced)] if paced else []
        shown = [each for each in taught if each[1].privileged]
        wanted = needs(config, paced) if paced else scored(config)
        rows.by_source = paced is not None and isinstance(paced.teacher.context, SourceContexts)
        rows.longest = {setting: Longest() for setting, _, _ in shown}
        files = local_files(config, "train_files")
        named = _Named(_naming(config))
        for file in files:
            rows._read(file, wanted, shown, named)
        rows.fingerprint = named.fingerprint
        if paced and not rows.problems:
            rows.problems += unnamed_sources(paced, rows.sources)
        for file in local_files(config, "val_files"):
            if file not in files:
                rows._read(file, scored(config), [], _Named([]), taught=False)
        return rows

    def _read(
        self, file: str, wanted: Sequence[Need], shown: Sequence[Shown], named: _Named, taught: bool = True
    ) -> None:
        scan = _File(self, wanted, shown, self.teachers if taught else [])
        columns = {"data_source", "reward_model", "extra_info", self.prompt_key, self.teacher_key}
        columns |= {need.path.split(".")[0] for need in wanted}
        try:
            for block in blocks(file, sorted(columns)):
                named.add(values(block, self.prompt_key))
                self._keep_examples(block)
                scan.add(block)
                if taught and self.by_source:
                    counts = pc.value_counts(as_text(values(block, SOURCE))).to_pylist()
                    self.sources.update({each["values"]: each["counts"] for each in counts if each["values"]})
        except UNREADABLE as error:
            self.problems.append(f"{file} cannot be read after row {scan.rows:,} ({describe_error(error)}).")
            return
        self.problems += scan.problems(file)

    def _keep_examples(self, block: pa.RecordBatch) -> None:
        sources = values(block, "data_source")
        for source in pc.unique(sources):
            if source.is_valid and source.as_py() not in self.examples and len(self.examples) < SOURCES:
                place = pc.index(sources, source).as_py()
                self.examples[source.as_py()] = block.slice(place, 1).to_pylist()[0]


def _naming(config: DictConfig) -> list[int]:
    """The places of the rows that name the data set; none where it is not all rows of the files, or not known."""
    rows, limit = number_of_prompts(config), config.data.get("train_max_samples", -1)
    return [] if rows is None or rows == limit else spread(range(rows))


class _Named:
    """Collects the prompts that name a data set."""

    def __init__(self, wanted: list[int]):
        self._wanted, self._rows = wanted, 0
        self._prompts: list[Any] = []

    def add(self, prompts: pa.Array) -> None:
        end = self._rows + len(prompts)
        here = [place - self._rows for place in self._wanted if self._rows <= place < end]
        self._prompts += [prompts[place].as_py() for place in here]
        self._rows = end

    @property
    def fingerprint(self) -> str:
        complete = self._prompts and len(self._prompts) == len(self._wanted) and all(self._prompts)
        return fingerprint(self._prompts) if complete else ""


class _File:
    """What is wrong with the rows of a file."""

    def __init__(self, found: Rows, wanted: Sequence[Need], shown: Sequence[Shown], teachers: Sequence[str]):
        self.found, self.shown, self.teachers, self.rows = found, shown, teachers, 0
        self.no_prompt = Tally()
        self.missing = {need: Tally() for need in wanted}
        self.unshown: dict[str, Tally] = {}
        self.first_error: dict[str, str] = {}
        self.unknown: Counter[Any] = Counter()

    def add(self, block: pa.RecordBatch) -> None:
        whole = pc.invert(no_prompt(values(block, self.found.prompt_key)))
        self._count(self.no_prompt, pc.invert(whole))
        for need, tally in self.missing.items():
            lacks = pc.and_(lacking(values(block, need.path)), _rows_of(block, need.rows))
            self._count(tally, lacks)
            if need.all_rows:
                whole = pc.and_not(whole, lacks)
        if self.teachers:
            keys = values(block, self.found.teacher_key)
            self.unknown.update({row["values"]: row["counts"] for row in pc.value_counts(keys).to_pylist()})
        for setting, context, which in self.shown:
            self._show(block, setting, context, pc.and_(whole, _rows_of(block, which)))
        self.rows += block.num_rows

    def _count(self, tally: Tally, mask: pa.BooleanArray) -> None:
        places = pc.indices_nonzero(mask)
        if len(places):
            tally.add(len(places), self.rows + places[0].as_py())

    def _show(self, block: pa.RecordBatch, setting: str, context: TeacherContext, mask: pa.BooleanArray) -> None:
        key, kept = self.found.prompt_key, self.found.longest[setting]
        read = {key} | {"extra_info"} & set(block.schema.names)
        if "answer" in context.variables:
            read.add("reward_model")
        for place, row in each_row(block.select(sorted(read)), mask):
            try:
                kept.add(context.messages(row | {"raw_prompt": row[key]}, dict.fromkeys(context.needs, "")))
            # A template is the user's own code: whatever it raises is the row's, or the template's, problem.
            except Exception as error:
                # One sentence a context: errors that quote their row would be as many as rows.
                self.unshown.setdefault(setting, Tally()).add(1, self.rows + place)
                self.first_error.setdefault(setting, describe_error(error))

    def problems(self, file: str) -> Iterator[str]:
        key = self.found.prompt_key
        if self.no_prompt.rows:
            tally = self.no_prompt
            yield (
                f"{tally.of(self.rows, file)} have no prompt in column {key} (null, no message, or a last one that is "
                f"blank or has no role); {tally.where}. Leave them out, or name another column (data.prompt_key)."
            )
        for need, tally in self.missing.items():
            if tally.rows and (need.all_rows or tally.rows == self.rows):
                yield f"{tally.of(self.rows, file)} have no {need.path} (null or blank); {tally.where}. {need.why}"
        for setting, tally in self.unshown.items():
            yield (
                f"{tally.of(self.rows, file)} cannot be shown to the teacher under {setting}; {tally.where}: "
                f"{self.first_error[setting]}"
            )
        strangers = {value: n for value, n in self.unknown.items() if value not in self.teachers}
        if strangers:
            some = ", ".join(f"{value} ({n:,} rows)" for value, n in list(strangers.items())[:5])
            yield (
                f"{file}: its column {self.found.teacher_key} (distillation.teacher_key) has values that are no "
                f"teacher's key: {some}. The keys in distillation.teacher_models: {', '.join(self.teachers)}."
            )


def unnamed_sources(paced: PacedConfig, there: Mapping[str, int]) -> Iterator[str]:
    """Data sources of ``paced.teacher.context`` that the data do not have, and those of the data that it does not name.

    Args:
        paced: The block.
        there: Training rows of each data source.
    """
    context = paced.teacher.context
    if not isinstance(context, SourceContexts):
        return
    key, has = "paced.teacher.context.data_source", ", ".join(f"{name} ({n:,} rows)" for name, n in there.items())
    for source in context.data_source:
        if source not in there:
            meant = nearest(source, there, most=0)
            yield f"{key}.{source}: the training data have no such data source; they have {has}. {meant}".rstrip()
    missing = [name for name in there if name not in context.data_source]
    if missing and context.others is None:
        yield (
            f"{key} names no context for {sum(there[name] for name in missing):,} rows of {', '.join(missing)}. The "
            f"training data have {has}. Name one for each, or say what all others see: paced.teacher.context.others."
        )


def _rows_of(block: pa.RecordBatch, which: Which | None) -> pa.BooleanArray:
    return pa.array(np.ones(block.num_rows, bool)) if which is None else which.of(block)


def no_prompt(prompts: pa.Array) -> pa.BooleanArray:
    """Where there are no chat messages, or the last of them is blank or has no role."""
    empty = lacking(prompts)
    if pa.types.is_null(prompts.type):
        return empty
    lengths = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy(zero_copy_only=False)
    ends = pa.array(np.cumsum(lengths) - 1, mask=lengths == 0)
    messages = pc.list_flatten(prompts)
    blank = pc.or_(lacking(pc.struct_field(messages, "content")), lacking(pc.struct_field(messages, "role"))).take(ends)
    return pc.or_(empty, pc.fill_null(blank, True))
