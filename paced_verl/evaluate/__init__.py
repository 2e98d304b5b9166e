"""What a distilled model gained and what it forgot: ``paced-verl eval accuracy`` and ``paced-verl eval retention``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class EvaluationError(ValueError):
    """An evaluation that cannot be done as asked; the message says what to change."""


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
