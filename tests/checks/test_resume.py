"""A resumed run restores what was fitted, and refuses every other difference by key, saved value and value here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from paced_verl.checks import resume
from paced_verl.config import PacedConfig
from paced_verl.config.wiring import wire
from paced_verl.launch.hydra import compose

FIXED = ["+paced=two_stage", "data.train_files=x.parquet", "trainer.total_training_steps=100"]
OTHERS = {
    "weight": {"alpha": 2.0, "beta": 0.5, "low": 0.1, "high": 0.9, "estimate": "posterior", "kernel": "uniform"},
    "pass_rate": {"samples": 4, "temperature": 0.5, "from_training": False, "decay": 0.5, "threshold": 0.9},
    "sampler": {"power": 1.0, "explore": 0.1, "skip_zero_weight": False, "seed": 3},
    "teacher": {"context": "answer", "topk": 8, "solution_key": "proof"},
    "targets": {"keep": "correct", "attempts": 2, "temperature": 0.7, "top_p": 0.5, "column": "extra_info.response"},
    "tokens": {"select": "tip", "keep": 0.25},
}
"""A value of each key of the block that is not its default."""


def composed(*overrides: str) -> tuple[DictConfig, PacedConfig]:
    config = compose([*FIXED, *overrides])
    return config, PacedConfig.parse(config.paced)


def settings(*overrides: str) -> dict[str, Any]:
    config, paced = composed(*overrides)
    return resume.settings_of(config, paced, paced.build_schedule(config.trainer.total_training_steps))


def changed(*overrides: str, before: tuple[str, ...] = ()) -> list[str]:
    saved = json.loads(json.dumps(settings(*before)))
    return list(resume.differences(saved, settings(*overrides)))


def test_the_same_settings_resume() -> None:
    assert changed() == []


@pytest.mark.parametrize("key", [f"{block}.{key}" for block, keys in OTHERS.items() for key in keys])
def test_every_key_of_the_block_that_changes_is_refused_with_both_values(key: str) -> None:
    block, name = key.split(".")
    value = OTHERS[block][name]
    default = settings()[f"paced.{key}"]
    (problem,) = changed(f"paced.{key}={value}")
    assert problem.startswith(f"paced.{key}: the run that is resumed has {default}, this one {value}.")


def test_no_key_of_the_block_is_forgotten() -> None:
    """All keys with a number, word or switch of their own are compared, whether or not the list above names them."""
    compared = {key for key in settings() if key.startswith("paced.")}
    _, paced = composed()
    for block, values in paced.model_dump().items():
        if isinstance(values, dict):
            for key in values:
                name = f"paced.{block}.{key}"
                assert name in compared or resume._is_free(name), name


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.train_batch_size=64", "data.train_batch_size"),
        ("data.train_max_samples=7", "data.train_max_samples"),
        ("data.seed=5", "data.seed"),
        ("actor_rollout_ref.rollout.n=3", "actor_rollout_ref.rollout.n"),
        ("distillation.distillation_loss.use_task_rewards=True", "use_task_rewards"),
        ("distillation.teacher_models.teacher_model.model_path=other", "teacher_model.model_path"),
        ("paced.schedule.0.divergence=jsd", "paced.schedule.0.divergence"),
        ("paced.schedule.1.coef={from: 1.0, to: 0.5}", "paced.schedule.1.coef"),
    ],
)
def test_what_decides_a_step_beside_the_block_is_refused(override: str, key: str) -> None:
    problems = changed(override)
    assert problems
    assert any(key in problem for problem in problems)


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "trainer.n_gpus_per_node=2",
        "trainer.save_freq=7",
        "trainer.logger=[console]",
        "trainer.default_local_dir=/elsewhere",
        "paced.pass_rate.at_end=true",
        "data.train_files=moved.parquet",
    ],
)
def test_what_may_change_on_purpose(override: str) -> None:
    assert changed(override) == []


def test_a_longer_run_keeps_the_steps_of_its_stages() -> None:
    (problem,) = changed("trainer.total_training_steps=200")
    assert "paced.schedule and trainer.total_training_steps" in problem
    assert "stages at steps 1–50, 51–the end, this one stages at steps 1–100, 101–the end" in problem
    assert changed("trainer.total_training_steps=200", "paced.schedule.0.until=50") == []


def test_a_stage_that_ramps_ends_where_it_did() -> None:
    ramp = ("paced.schedule.1.coef={from: 1.0, to: 0.5}", "paced.schedule.0.until=50")
    (problem,) = changed(*ramp, "trainer.total_training_steps=200", before=ramp)
    assert "51–100, this one stages at steps 1–50, 51–200" in problem


@pytest.mark.parametrize(
    "teacher",
    [
        ("paced.teacher.backend=reference", "paced.teacher.context=answer", "paced.teacher.topk=full"),
        ("paced.teacher.backend=student", "paced.teacher.context=answer"),
        ("distillation.teacher_models.teacher_model.model_path=T",),
    ],
)
def test_what_the_trainer_sets_besides_is_no_difference(teacher: tuple[str, ...]) -> None:
    """The settings are written on the driver, where verl's configuration is wired, and compared in the launcher."""
    config, paced = composed(*teacher)
    before = resume.settings_of(config, paced)
    wire(config, paced, "sync")
    assert resume.settings_of(config, paced) == before


def checkpoint(folder: Path, step: int, tracker: str | None = None) -> Path:
    (folder / f"global_step_{step}" / "paced").mkdir(parents=True)
    (folder / f"global_step_{step}" / "data.pt").touch()
    if tracker is not None:
        (folder / resume.TRACKER).write_text(tracker)
    return folder / f"global_step_{step}"


def test_a_difference_is_found_where_the_run_is_composed(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path, 3, tracker="3")
    resume.save(settings(), saved / "paced")
    where = f"trainer.default_local_dir={tmp_path}"
    assert list(resume.problems(*composed(where))) == []
    (problem,) = resume.problems(*composed(where, "paced.weight.alpha=2"))
    assert "paced.weight.alpha: the run that is resumed has 1.0, this one 2.0" in problem
    assert list(resume.problems(*composed(where, "paced.weight.alpha=2", "trainer.resume_mode=disable"))) == []
    path = [f"trainer.resume_from_path={saved}", "trainer.resume_mode=resume_path", "paced.weight.alpha=2"]
    assert len(list(resume.problems(*composed(*path)))) == 1


def test_a_tracker_that_a_kill_has_left_empty_names_the_newest_checkpoint(tmp_path: Path) -> None:
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 4, tracker="")
    os.utime(older / "data.pt", (1, 1))
    os.utime(newest / "data.pt", (2, 2))
    (tmp_path / "global_step_5").mkdir()  # its save was cut short
    assert resume.latest_step(tmp_path) == 4
    resume.repair_tracker(tmp_path)
    assert (tmp_path / resume.TRACKER).read_text() == "4"


@pytest.mark.parametrize("tracker", [None, "12"])
def test_a_tracker_that_is_whole_or_not_there_stays(tmp_path: Path, tracker: str | None) -> None:
    checkpoint(tmp_path, 4, tracker)
    resume.repair_tracker(tmp_path)
    assert resume.latest_step(tmp_path) == (12 if tracker else None)
    assert (tmp_path / resume.TRACKER).exists() == (tracker is not None)


def test_an_empty_tracker_without_a_checkpoint_is_a_new_run(tmp_path: Path) -> None:
    (tmp_path / resume.TRACKER).touch()
    resume.repair_tracker(tmp_path)
    assert not (tmp_path / resume.TRACKER).exists()
