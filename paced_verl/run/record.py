"""``paced/run.json`` beside a run's checkpoints: what a report needs to know of the run, and cannot read elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from paced_verl.atomic import replacing
from paced_verl.pacing.schedule import Schedule

FILE = "run.json"
PACKAGES = ("paced-verl", "verl", "torch", "transformers", "vllm", "ray")


def write_record(
    folder: Path, config: DictConfig, schedule: Schedule, prompts: int, fingerprint: str, step: int
) -> None:
    """Write the record of a run that begins, or goes on: the settings of this attempt, and a line for each so far.

    What earlier attempts logged to the file that verl's logger is about to begin anew is kept beside it.

    Args:
        folder: ``paced`` in the run's ``trainer.default_local_dir``.
        config: verl's whole configuration.
        schedule: Its stages, in steps.
        prompts: Number of training prompts.
        fingerprint: Names them.
        step: The last step that was trained before; 0 where it begins.
    """
    file = folder / FILE
    attempts = json.loads(file.read_text())["attempts"] if step and file.exists() else []
    metrics = metrics_file(config)
    for number, attempt in enumerate(attempts, 1):
        if metrics is not None and attempt["metrics"] == str(metrics):
            attempt["metrics"] = str(_kept(metrics, number))
    attempts.append(
        {
            "began": _now(),
            "after_step": step,
            "metrics": None if metrics is None else str(metrics),
        }
    )
    record = {
        "versions": {name: _version(name) for name in PACKAGES},
        "config": OmegaConf.to_container(config, resolve=True),
        "schedule": [dataclasses.asdict(stage) for stage in schedule.stages],
        "prompts": prompts,
        "fingerprint": fingerprint,
        "attempts": attempts,
    }
    _write(file, record)


def _kept(metrics: Path, attempt: int) -> Path:
    """The file where an attempt's metrics are out of the way of the next one's.

    A kill before the record says so changes nothing: the next attempt finds it moved, and gives it the same name.
    """
    kept = metrics.with_name(f"{metrics.stem}.attempt-{attempt}{metrics.suffix}")
    if metrics.is_file():  # and no device
        metrics.replace(kept)
    return kept


def record_end(folder: Path, cause: str | None = None) -> None:
    """Note in the record that the attempt it named last has ended. What is killed leaves no such note.

    Args:
        folder: As for :func:`write_record`.
        cause: What it died of; ``None`` where it came to its own end.
    """
    file = folder / FILE
    record = json.loads(file.read_text())
    record["attempts"][-1].update(ended=_now(), cause=cause)
    _write(file, record)


def _write(file: Path, record: dict[str, Any]) -> None:
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1, default=str))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def metrics_file(config: DictConfig) -> Path | None:
    """Where verl's logger ``file`` writes, as :class:`verl.utils.tracking.FileLogger` has it; ``None`` without it."""
    logger: Any = config.trainer.logger
    if "file" not in ([logger] if isinstance(logger, str) else logger):
        return None
    path = os.environ.get("VERL_FILE_LOGGER_PATH")
    root = Path(os.environ.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser()
    named = root / config.trainer.project_name / f"{config.trainer.experiment_name}.jsonl"
    return (Path(path) if path else named).resolve()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
