"""What a distilled model gained and what it forgot: ``paced-verl eval accuracy`` and ``paced-verl eval retention``."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from paced_verl.errors import PacedError


class EvaluationError(PacedError):
    """An evaluation that cannot be done as asked; the message says what to change."""


def check_writable(file: Path) -> None:
    """Find out that ``file`` cannot be written before the work whose report it is to hold; its folder is made.

    Raises:
        EvaluationError: It is a folder, or nothing can be written where it is to be.
    """
    if file.is_dir():
        raise EvaluationError(
            f"--out {file} is a folder: expected the JSON file to write, such as {file / 'report.json'}."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.exists():
            with file.open("r+b"):
                pass
    except OSError as error:
        raise EvaluationError(f"--out {file} cannot be written: {error}.") from None


def write_json(file: Path, report: dict[str, Any]) -> None:
    """Write ``report``; NaN (the standard error of a single unit) becomes null, because JSON has no NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(inner) for inner in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(clean(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
