"""A resumed run goes on as it began: what was fitted is restored, and a setting that differs is refused by name.

The settings that decide what a step trains are written beside every checkpoint and compared before a resumed run takes
a GPU. What may change on purpose is everything else: learning rate, micro-batches, the GPUs of teachers and
of rollouts (not the number of the trainer's: verl's checkpoints are cut by it), checkpoints, validation, logging, and
the end of the last stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from paced_verl.config import PacedConfig
from paced_verl.config.wiring import teacher_paths
from paced_verl.pacing.schedule import Schedule

FILE = "settings.json"
TRACKER = "latest_checkpointed_iteration.txt"
"""verl's: the number of the last whole checkpoint."""
STEPS = "paced.schedule"
"""Where a schedule's stages are kept in steps: ``until`` alone says nothing about a run of another length."""
FREE = (
    "paced.strict",
    "paced.pass_rate.at_end",
    "paced.targets.endpoint",
    "paced.targets.file",
    "paced.alignment",
    "paced.capability.budget",
)
"""Keys of the block that change nothing that trains."""
VERL_KEYS = (
    "data.prompt_key",
    "data.train_batch_size",
    "data.train_max_samples",
    "data.shuffle",
    "data.seed",
    "data.filter_overlong_prompts",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.loss_agg_mode",
    "distillation.distillation_loss.use_task_rewards",
    "distillation.distillation_loss.distillation_loss_coef",
    "distillation.distillation_loss.loss_max_clamp",
)
"""verl's keys that decide which prompts there are and what a step makes of them. Files are known by their prompts."""


def settings_of(config: DictConfig, paced: PacedConfig, schedule: Schedule | None = None) -> dict[str, Any]:
    """What a checkpoint keeps of a configuration, by the keys a person writes; values that JSON knows.

    Args:
        config: verl's whole configuration, before the trainer has sized anything to a batch.
        paced: Its ``paced`` block, parsed.
        schedule: The stages in steps, once the length of the run is known.
    """
    settings = {key: OmegaConf.select(config, key) for key in VERL_KEYS}
    for name, path in teacher_paths(config).items():
        settings[f"distillation.teacher_models.{name}.model_path"] = path
    settings |= _flat("paced", paced.model_dump(mode="json", by_alias=True))
    settings = {key: value for key, value in settings.items() if not _is_free(key)}
    if schedule is not None:
        settings[STEPS] = [[stage.first, stage.last] for stage in schedule.stages]
        if not schedule.stages[-1].ramps:
            settings[STEPS][-1][1] = None
    return settings


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A tree of mappings and lists as one mapping of dotted keys."""
    if not (isinstance(value, Mapping | list) and value):
        return {key: value}
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {name: leaf for part, below in items for name, leaf in _flat(f"{key}.{part}", below).items()}


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE) or key.endswith(".until")


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What a run that resumes has other than the run it resumes, one sentence a key.

    Args:
        saved: What :func:`settings_of` gave when the checkpoint was written, read from JSON.
        here: The same of the run that resumes; without stages in steps where its length is not known yet.
    """
    for key in sorted(saved.keys() | here.keys()):
        if key == STEPS and STEPS not in here:
            continue
        was, now = saved.get(key), here.get(key)
        if was != now:
            yield (
                f"{_written(key)}: the run that is resumed has {_shown(key, was)}, this one {_shown(key, now)}. Resume "
                "with the settings the run began with, or start a new one (trainer.resume_mode=disable, or another "
                "trainer.default_local_dir)."
            )


def _written(key: str) -> str:
    return f"{key} and trainer.total_training_steps" if key == STEPS else key


def _shown(key: str, value: Any) -> str:
    if key != STEPS or value is None:
        return str(value)
    return "stages at steps " + ", ".join(f"{first}–{last or 'the end'}" for first, last in value)


def save(settings: Mapping[str, Any], folder: Path) -> None:
    """Write the settings beside a checkpoint."""
    (folder / FILE).write_text(json.dumps(settings, indent=1))


def problems(config: DictConfig, paced: PacedConfig, schedule: Schedule | None = None) -> Iterator[str]:
    """What differs from the checkpoint that a run will resume from, as far as this machine sees it."""
    checkpoint = checkpoint_of(config)
    file = None if checkpoint is None else checkpoint / "paced" / FILE
    if file is not None and file.exists():
        yield from differences(json.loads(file.read_text()), settings_of(config, paced, schedule))


def checkpoint_of(config: DictConfig) -> Path | None:
    """The folder ``global_step_N`` that verl will resume from; ``None``: none that this machine sees."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path)
    if trainer.resume_mode != "auto":
        return None
    folder = Path(trainer.default_local_dir)
    step = latest_step(folder)
    return None if step is None else folder / f"global_step_{step}"


def latest_step(folder: Path) -> int | None:
    """The step of the last whole checkpoint in a run's folder; ``None``: there is none.

    verl names it in a file that it truncates and then writes. Where a kill, or a machine that failed, has left that
    file empty, it is the newest checkpoint: its ``data.pt`` is written right before.
    """
    tracker = folder / TRACKER
    if not tracker.exists():
        return None
    if text := tracker.read_text().strip():
        return int(text)
    states = sorted(folder.glob("global_step_*/data.pt"), key=lambda file: file.stat().st_mtime)
    return int(states[-1].parent.name.removeprefix("global_step_")) if states else None


def repair_tracker(folder: Path) -> None:
    """Write the file that verl reads the number of the last checkpoint from, where it was left empty."""
    tracker, step = folder / TRACKER, latest_step(folder)
    if tracker.exists() and not tracker.read_text().strip():
        if step is None:
            tracker.unlink()
        else:
            tracker.write_text(str(step))
        print(f"[paced] {tracker} was left empty by a run that was killed; it now names step {step}.", flush=True)
