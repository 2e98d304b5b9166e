"""Every recipe composes and passes the plan, with small local data in the place of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig

from paced_verl.launch.hydra import compose
from paced_verl.launch.plan import Plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "paper")
ROWS = 256
EPOCHS = 64
"""Passes over them for each of the recipe's: as many steps as with 16,000 rows."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    columns = {
        "data_source": ["math_dapo", "code"] * (ROWS // 2),
        "prompt": [[{"role": "user", "content": f"problem {i}"}] for i in range(ROWS)],
        "reward_model": [{"style": "rule", "ground_truth": "4"}] * ROWS,
        "extra_info": [{"index": str(i), "solution": "two and two"} for i in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


def divergences(config: DictConfig) -> list[str]:
    return [stage.divergence for stage in config.paced.schedule]


def teachers(config: DictConfig) -> int:
    return sum(bool(teacher.get("model_path")) for teacher in config.distillation.teacher_models.values())


TRACKS: dict[str, Callable[[DictConfig], bool]] = {
    "first track": lambda c: divergences(c) == ["forward_kl"] and c.paced.weight.kernel == "beta",
    "two stages": lambda c: divergences(c) == ["forward_kl", "reverse_kl"],
    "second track": lambda c: (c.paced.teacher.backend, c.paced.teacher.context) == ("reference", "solution"),
    "another family": lambda c: "llama" in c.actor_rollout_ref.model.path.lower(),
    "uniform baseline": lambda c: c.paced.weight.kernel == "uniform" and divergences(c) == ["forward_kl"],
    "hard filter baseline": lambda c: c.paced.weight.kernel == "hard_filter",
    "AKL baseline": lambda c: divergences(c) == ["akl"],
    "beside GRPO": lambda c: c.distillation.distillation_loss.use_task_rewards,
    "several teachers": lambda c: teachers(c) > 1,
    "several capabilities": lambda c: c.paced.capability is not None and teachers(c) == 1,
    "a teacher for each capability": lambda c: (
        c.paced.capability is not None and c.paced.capability.column == c.distillation.teacher_key and teachers(c) > 1
    ),
    "several nodes": lambda c: c.trainer.nnodes + c.actor_rollout_ref.rollout.nnodes + c.distillation.nnodes > 3,
}
"""What README and docs promise a recipe for: how its configuration shows it."""


@pytest.fixture(scope="module")
def composed() -> list[DictConfig]:
    return [compose([], recipe, CONFIGS) for recipe in RECIPES]


@pytest.mark.parametrize("track", TRACKS)
def test_there_is_a_recipe_for_every_track(track: str, composed: list[DictConfig]) -> None:
    assert any(TRACKS[track](config) for config in composed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_the_plan_and_says_what_it_is_for(recipe: str, data: Path) -> None:
    config = compose([f"data.train_files={data}", f"data.val_files={data}"], recipe, CONFIGS)
    config.trainer.total_epochs *= EPOCHS
    plan = str(Plan.of(config))
    assert "stage 1" in plan
    assert "ignored" not in plan
    comment = (CONFIGS / f"{recipe}.yaml").read_text().split("defaults:")[0]
    assert "# Hardware:" in comment
    assert "# Expect" in comment
