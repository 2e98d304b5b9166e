"""Every override that README, docs, recipes and examples quote is one that Hydra takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paced_verl.launch.hydra import compose

ROOT = Path(__file__).resolve().parents[1]
OVERRIDE = re.compile(
    r"(?<![\w/.])((?:\+\+|\+|~)?[a-z_]\w*(?:\.\w+)+=(?:\{(?:[^{}]|\{[^{}]*\})*\}|\[[^\]]*\]|[^\s`,;|)]+))"
)
FILES = [
    path
    for pattern in (
        "README.md",
        "docs/*.md",
        "docs/experiments/*.md",
        "configs/*.yaml",
        "paced_verl/configs/*/*.yaml",
        "examples/*.py",
    )
    for path in sorted(ROOT.glob(pattern))
]


def quoted(text: str) -> list[list[str]]:
    """The overrides of a text, in rounds that name no key twice."""
    rounds: list[dict[str, str]] = []
    for override in dict.fromkeys(OVERRIDE.findall(text)):
        key, value = override.lstrip("+~").split("=", 1)
        free = next((taken for taken in rounds if key not in taken), None)
        if free is None:
            rounds.append(free := {})
        free[key] = override.replace(value, value.rstrip(".").replace("…", "x"))
    return [list(taken.values()) for taken in rounds]


def test_overrides_are_found() -> None:
    assert quoted("`a.b=1`, then `+a.c={d: 1, e: {f: 2}}` and a.b=2.") == [
        ["a.b=1", "+a.c={d: 1, e: {f: 2}}"],
        ["a.b=2"],
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_override_that_is_quoted_composes(path: Path) -> None:
    for overrides in quoted(path.read_text()):
        advantage = [override for override in overrides if "algorithm.paced" in override or "teacher_path" in override]
        compose(["+paced=advantage", *advantage])
        compose(["+paced=two_stage", *(override for override in overrides if override not in advantage)])
