"""The walls of the house: what each folder may import, and which of them need neither Ray nor verl."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paced_verl

HOUSE = Path(paced_verl.__file__).parent
GROUND = "ground"  # the modules beside the folders, which know none of them
MAY: dict[str, set[str]] = {
    "divergence": set(),
    "pacing": set(),
    "tasks": set(),
    "cpu": set(),
    "teacher": {"divergence"},
    "capability": set(),
    "alignment": {"divergence"},
    "config": {"alignment", "capability", "divergence", "pacing", "teacher"},
    "targets": {"config", "pacing", "teacher"},
    "run": {"capability", "config", "pacing", "targets"},
    "checks": {"alignment", "capability", "config", "pacing", "targets", "teacher"},
    "forcing": {"alignment", "checks", "config", "pacing", "targets", "teacher"},
    "training": {
        "alignment",
        "capability",
        "checks",
        "config",
        "divergence",
        "forcing",
        "pacing",
        "run",
        "targets",
        "teacher",
    },
    "advantage": {"checks", "config", "divergence", "pacing"},
    "launch": {"advantage", "capability", "checks", "config", "cpu", "pacing", "targets", "training"},
    "evaluate": {"launch", "pacing"},
    "diagnostics": {"pacing"},
    "gradients": {"config", "diagnostics", "divergence", "evaluate", "pacing", "targets", "teacher"},
    "report": {"alignment", "capability", "diagnostics", "pacing", "targets"},
    "cli": {
        "alignment",
        "capability",
        "checks",
        "config",
        "diagnostics",
        "evaluate",
        "forcing",
        "gradients",
        "launch",
        "pacing",
        "report",
        "targets",
        "teacher",
    },
}
"""Of each folder with code: the folders it may import besides itself and the ground. From the bottom upwards."""
PURE = ("divergence", "pacing", "capability", "config", "run", "report", "diagnostics", "alignment")
DATA = ("_hydra", "configs")  # nobody imports them
DOOR = "__init__.py"  # verl's: it imports what it leads to


def folder_of(module: str) -> str:
    """The folder under ``paced_verl`` that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (HOUSE / parts[1]).is_dir() else GROUND


def imports(file: Path) -> set[str]:
    """The modules of ours that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paced_verl":
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "paced_verl"}
    return found


def folders() -> list[str]:
    return sorted(path.name for path in HOUSE.iterdir() if path.is_dir() and path.name not in (*DATA, "__pycache__"))


def test_every_folder_has_its_rule() -> None:
    assert folders() == sorted(MAY)
    order = list(MAY)
    assert all(order.index(below) < order.index(folder) for folder, may in MAY.items() for below in may)


def test_the_docs_name_the_same_walls() -> None:
    text = (HOUSE.parent / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \|[^|]*\| (yes)? ?\| ?([^|]*) \|$", text, re.M)
    told: dict[str, set[str]] = {}
    for names, pure, may in rows:
        for name in re.findall(r"`(\w+)/`", names):
            named = set(re.findall(r"`(\w+)`", may))
            told[name] = set(told) if may == "all above" else set(told) - named if "all but" in may else named
            assert bool(pure) == (name in PURE), name
    assert told == MAY


@pytest.mark.parametrize("folder", MAY)
def test_no_folder_imports_what_it_may_not(folder: str) -> None:
    for file in (HOUSE / folder).rglob("*.py"):
        others = {folder_of(module) for module in imports(file)} - {folder, GROUND}
        assert others <= MAY[folder], file


def test_the_ground_knows_no_folder() -> None:
    for file in HOUSE.glob("*.py"):
        if file.name != DOOR:
            assert {folder_of(module) for module in imports(file)} <= {GROUND}, file


@pytest.mark.parametrize("folder", PURE)
def test_what_decides_needs_neither_ray_nor_verl(folder: str) -> None:
    names = [".".join(file.relative_to(HOUSE.parent).with_suffix("").parts) for file in (HOUSE / folder).rglob("*.py")]
    names = [name.removesuffix(".__init__") for name in names if name != "paced_verl.divergence.fused"]  # needs triton
    code = "import sys\n" + "".join(f"import {name}\n" for name in sorted(names))
    # Importing polars starts a thread, which a worker that is forked would lose.
    code += "print([m for m in ('ray', 'verl', 'hydra', 'tensordict', 'vllm', 'polars') if m in sys.modules])"
    environment = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "[]"
