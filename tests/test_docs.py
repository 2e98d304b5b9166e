"""Every override that README, docs, recipes and examples quote is one that Hydra takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paced_verl.launch.hydra import compose
from paced_verl.launch.plan import Plan

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
        "configs/*",
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


def test_the_complete_command_of_the_readme_passes_the_plan(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (command,) = [block for block in blocks if "main_ppo" in block and "…" not in block]
    columns = {
        "data_source": ["my_problems"] * 64,
        "prompt": [[{"role": "user", "content": f"problem {i}"}] for i in range(64)],
        "reward_model": [{"style": "rule", "ground_truth": "4"}] * 64,
    }
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    words = shlex.split(re.sub(r"data/\w+\.parquet", f"{tmp_path}/data.parquet", command.replace("\\\n", "")))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    plan = str(Plan.of(compose(words[3:])))
    assert "GPUs: trainer + student vLLM 4, teacher vLLM 4" in plan
