from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Workplace

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: "test_resume" not in item.nodeid)  # the longest first: two workers end together


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, teacher and student of the smallest real task."""
    folder = tmp_path_factory.mktemp("models")
    script = ROOT / "scripts" / "tiny_models.py"
    subprocess.run([sys.executable, str(script), "--preset", "test", "--out", str(folder)], check=True, timeout=300)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, models: Path) -> Workplace:
    return Workplace(tmp_path / "run", models)
