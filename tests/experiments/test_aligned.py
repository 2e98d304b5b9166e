"""The page of the measurements of alignment: made-up numbers stand where they belong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from scripts.experiments.aligned.page import blocks, shown
from scripts.experiments.aligned.study import pace


def of(value: float, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "questions": 9}


def row() -> dict[str, Any]:
    same = {"aggregate": of(0.5), "naive": of(0.3), "advantage": of(0.01), "reliability": float("nan")}
    known = same | {"aggregate": of(0.7), "reliability": 0.9}
    gaps = {name: of(0.2) for name in ("naive_correct", "naive_wrong", "correct", "wrong", "matched_gap")}
    numbers = {
        "teachers": [
            part | {"teacher": teacher, "divergence": divergence}
            for teacher, part in (("big", known), ("sharpen", same))
            for divergence in ("reverse_kl", "forward_kl")
        ],
        "outcomes": [{"teacher": "big", "divergence": "reverse_kl", "gap": of(-0.4), **gaps}],
        "against": [
            {"first": first, "second": "sharpen", "divergence": divergence, **of(0.2)}
            for divergence in ("reverse_kl", "forward_kl")
            for first in ("big", "suppress")
        ],
        "pass_rates": [{"teacher": "big", "divergence": "reverse_kl", "fifth": 2, **of(0.6)}],
        "questions": [{}] * 9,
        "rollouts": {"free": 10, "forced": 2000},
        "nodes": {"scored": 3, "chosen": 12},
    }
    exact = [{"k": 5, "n": 10, "low": 0.5, "high": 0.5}, {"k": 0, "n": 10, "low": 0.9, "high": 0.91}]
    speed = {"one server": 200.0, "two servers": 220.0, "estimate": 50.0}
    score = {"auroc": 0.8, "low": 0.7, "high": 0.9}
    fitted = {"teacher": "big", "divergence": "reverse_kl", "right": 0.52, "position": score, "tip": score}
    predicted = json.dumps([fitted | {"held_out": {"auroc": 0.95, "low": 0.9, "high": 1.0}}])
    made = {"case": "words", "minutes": 4.2, "rollouts_by_contrast": 0.47, "predicted": predicted}
    return made | {"numbers": json.dumps(numbers), "exact": json.dumps(exact), "speed": json.dumps(speed)}


def test_numbers_stand_where_they_belong() -> None:
    other = row() | {"case": "sums", "exact": "", "speed": ""}
    found = blocks([row(), other])
    assert (
        "| words | big | **+0.70 ± 0.10** | **+0.70 ± 0.10** | **+0.30 ± 0.10** | +0.01 ± 0.10 | 0.900 |"
        in found["teachers"]
    )
    assert "| sums | sharpen | **+0.50 ± 0.10** | **+0.50 ± 0.10** |" in found["teachers"]
    assert found["teachers"].count("knows nothing") == 2
    both = "**+0.20 ± 0.10** | **+0.20 ± 0.10**"
    assert [line for line in found["against"].splitlines() if "words" in line] == [
        f"| words | big | sharpen | {both} |"
    ]
    assert "| **-0.40 ± 0.10** | **+0.20 ± 0.10** |" in found["outcomes"]
    assert "| words | big | reverse_kl |  |  | **+0.60 ± 0.10** (9) |  |  |" in found["rates"]
    assert "| words | 9 | 10 | 2,000 | 3 of 12 | 4.2 | 0.47 |" in found["cost"]
    scores = "0.95 (0.90 to 1.00) | 0.80 (0.70 to 0.90) | 0.80 (0.70 to 0.90)"
    assert f"| words | big | reverse_kl | 52% | {scores} |" in found["tokens"]
    text = " ".join(found["exact"].split())
    assert "at 2 tokens" in text
    assert "lies within two standard errors of the bounds at 50%" in text
    assert "4.0 times the rate" in found["speed"]
    assert "1.10 times" in " ".join(found["speed"].split())


def test_an_interval_that_is_not_known_is_left_out() -> None:
    nan = float("nan")
    assert shown({"value": 0.5, "low": nan, "high": nan}) == "+0.50"
    assert shown({"value": nan, "low": nan, "high": nan}) == ""


def test_the_pace_is_of_forced_rollouts_alone(tmp_path: Path) -> None:
    """Three parts of forced ones, two seconds apart; the first begins the time. Free ones before them do not count."""
    for i, (forced, at) in enumerate([(-1, 1000), (0, 1010), (2, 1012), (1, 1014)]):
        part = tmp_path / f"{i:06}.parquet"
        pl.DataFrame({"forced": [forced] * 100}).write_parquet(part)
        os.utime(part, (at, at))
    assert pace(tmp_path) == pytest.approx(50)
