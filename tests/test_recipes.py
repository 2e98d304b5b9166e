"""Every recipe composes and passes the plan, with small local data in the place of its own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paced_verl.launch import compose
from paced_verl.plan import Plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "paper")
ROWS = 256


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    columns = {
        "data_source": ["math_dapo"] * ROWS,
        "prompt": [[{"role": "user", "content": f"problem {i}"}] for i in range(ROWS)],
        "reward_model": [{"style": "rule", "ground_truth": "4"}] * ROWS,
        "extra_info": [{"index": str(i), "solution": "two and two"} for i in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_there_is_a_recipe_for_every_track() -> None:
    assert len(RECIPES) >= 10


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_the_plan_and_says_what_it_is_for(recipe: str, data: Path) -> None:
    config = compose([f"data.train_files={data}", f"data.val_files={data}"], recipe, CONFIGS)
    plan = str(Plan.of(config))
    assert "stage 1" in plan
    assert "ignored" not in plan
    comment = (CONFIGS / f"{recipe}.yaml").read_text().split("defaults:")[0]
    assert "# Hardware:" in comment
    assert "# Expect" in comment
