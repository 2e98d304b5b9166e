"""What verl's logger ``file`` wrote, put together over the attempts of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Steps = dict[int, dict[str, float]]
"""Scalars by name, by step. Step 0 is the validation before training."""


def read_metrics(file: Path) -> tuple[Steps, list[str]]:
    """Read JSON lines, ``{"step": …, "data": {name: number}}`` each.

    A last line without its end is what a kill has left of it: that step is not counted. Numbers that JSON has no word
    for are null in the file, and are left out.

    Returns:
        The steps, and a sentence about each line that could not be read.
    """
    steps: Steps = {}
    warnings = []
    *lines, rest = file.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            step, values = _entry(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            warnings.append(f"{file}: line {number} is no entry of verl's file logger and was skipped: {line[:60]!r}.")
            continue
        steps.setdefault(step, {}).update(values)
    if rest:
        warnings.append(f"{file}: the last line has no end, as a kill leaves it; its step is not counted.")
    return steps, warnings


def _entry(line: str) -> tuple[int, dict[str, float]]:
    entry = json.loads(line)
    return int(entry["step"]), {name: float(value) for name, value in entry["data"].items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def join(files: Iterable[Path]) -> tuple[Steps, list[str]]:
    """The steps of several files; a later file's count where two have the same step."""
    return read_attempts([{"after_step": None, "metrics": str(file)} for file in files], Path())


def read_attempts(attempts: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Steps, list[str]]:
    """The steps of a run that was resumed: what an attempt went back behind counts as the later attempt had it.

    Args:
        attempts: As ``run.json`` has them, in order: the step each went on from, and its metrics file.
        folder: The run's; a file that has moved is looked for in it and beside it.

    Returns:
        The steps in order, and a sentence about everything that is missing.
    """
    steps: Steps = {}
    warnings = []
    for i, attempt in enumerate(attempts):
        if attempt["after_step"] is not None:
            steps = {step: values for step, values in steps.items() if step <= attempt["after_step"]}
        name = attempt["metrics"]
        found = _locate(name, folder) if name else None
        if found is None:
            warnings.append(_missing(name, i))
            continue
        new, said = read_metrics(found)
        warnings += said
        for step, values in new.items():
            steps.setdefault(step, {}).update(values)
    return dict(sorted(steps.items())), warnings


def _missing(name: str | None, attempt: int) -> str:
    if name is None:
        return f"Attempt {attempt + 1} kept no metrics: trainer.logger did not name `file`."
    return f"The metrics of attempt {attempt + 1} are not at {name}, nor in the run's folder or beside it."


def _locate(name: str, folder: Path) -> Path | None:
    """The file, where it was or where a run that was copied would have it."""
    places = (Path(name), folder / Path(name).name, folder.parent / Path(name).name)
    return next((place for place in places if place.is_file()), None)
