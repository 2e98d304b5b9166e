"""A run, read from the files it left: its record, verl's metrics, pass-rate tables, checkpoints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from paced_verl.errors import PacedError
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.report.metrics import Steps, join, read_attempts


@dataclass(frozen=True)
class Run:
    """A run's numbers.

    Attributes:
        metrics: By step, verl's and this plugin's scalars; the last attempt's where a resumed run trained a step again.
        pass_rates: By number of training steps done, the tables that the run kept: estimated on the whole training set,
            unless pass rates are measured when prompts are drawn.
        name: What pages and tables call it.
        record: ``paced/run.json``; empty without one.
        folders: By step, what this plugin keeps in verl's checkpoints.
        warnings: Sentences about what is missing or was left out.
        decisions: Rows of ``paced/capability/history.parquet``, one a decision and capability; empty without one.
        transfer: Rows of ``transfer.parquet`` beside it, what tokens spent on ``by`` add to ``to``.
        seen: When a file of the run was last written, seconds since 1970; ``None`` where there is none.
    """

    metrics: Steps
    pass_rates: dict[int, PassRateTable]
    name: str = "run"
    record: Mapping[str, Any] = field(default_factory=dict)
    folders: dict[int, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    transfer: list[dict[str, Any]] = field(default_factory=list)
    seen: float | None = None

    @classmethod
    def load(cls, metrics: Iterable[Path], checkpoints: Path) -> Run:
        """Read ``metrics`` (JSON lines, in order) and the tables in ``checkpoints``, verl's ``default_local_dir``."""
        steps, warnings = join(metrics)
        return cls(steps, _tables(checkpoints), warnings=warnings)

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what a run has left.

        Args:
            path: Its ``trainer.default_local_dir``. Of a run that has no record there, as those of verl's own trainers,
                a folder with the metrics files, or one of these.

        Raises:
            PacedError: There is no run.
        """
        path = path.resolve()
        file = path / "paced" / "run.json"
        return _recorded(path, file) if file.is_file() else _unrecorded(path)

    def series(self, name: str) -> dict[int, float]:
        """A metric by step, where it was logged."""
        return {step: values[name] for step, values in self.metrics.items() if name in values}

    def accuracy(self) -> dict[int, float]:
        """Held-out accuracy by step: the mean of verl's ``val-core/…/mean@n`` over data sources."""
        by_step = {}
        for step, values in self.metrics.items():
            scores = [v for name, v in values.items() if name.startswith("val-core/") and "/mean@" in name]
            if scores:
                by_step[step] = sum(scores) / len(scores)
        return by_step

    def setting(self, path: str, default: Any = None) -> Any:
        """A setting of the run's configuration by dotted path; ``default`` where it is not known or null."""
        value: Any = self.record.get("config", {})
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return default if value is None else value

    @property
    def step(self) -> int:
        """The last step that was trained; 0 for none."""
        return max(self.metrics, default=0)

    @property
    def total(self) -> int | None:
        """Steps that the run is to have, where that is known."""
        return max((stage["last"] for stage in self.record.get("schedule", [])), default=None)

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """(number, first, last) of each stage that has trained."""
        by_stage: dict[int, list[int]] = {}
        for step, stage in self.series("paced/stage").items():
            by_stage.setdefault(int(stage), []).append(step)
        return [(stage, min(steps), max(steps)) for stage, steps in sorted(by_stage.items())]

    @property
    def measures_all(self) -> bool:
        """Whether :attr:`pass_rates` are estimates of all prompts at once, and not of what was about to be drawn."""
        return bool(self.setting("paced.pass_rate.refresh") != "draw")

    def tables(self) -> tuple[dict[int, PassRateTable], bool]:
        """Pass rates by steps done, and whether all were estimated over the whole training set at once.

        A run that has fewer than two such estimates shows what its checkpoints hold, too: rates that moved only where
        prompts were measured. With ``refresh: draw`` all are of this kind.
        """
        if len(self.pass_rates) > 1 or not self.folders:
            return self.pass_rates, self.measures_all
        kept = {step: folder / "pass_rates.parquet" for step, folder in self.folders.items()}
        loaded = {step: PassRateTable.load(file) for step, file in kept.items() if file.is_file()}
        return dict(sorted((loaded | self.pass_rates).items())), False


def _recorded(folder: Path, file: Path) -> Run:
    try:
        record = json.loads(file.read_text())
        attempts = record["attempts"]
    except (ValueError, KeyError, TypeError) as error:
        raise PacedError(
            f"{file}: expected the record that a run writes when it begins, but it cannot be read ({error!r}); "
            "restore it, or report the run's metrics file alone."
        ) from None
    steps, warnings = read_attempts(attempts, folder)
    done = max(steps, default=None) if attempts[-1]["metrics"] else None
    tables, folders = _tables(folder), _checkpoints(folder)
    if done is not None:  # what lies behind it is of an attempt that the run went back behind
        tables = {step: table for step, table in tables.items() if step <= done}
        folders = {step: kept for step, kept in folders.items() if step <= done}
    files = [file, *folder.glob("paced/pass_rates/*"), *(Path(a["metrics"]) for a in attempts if a["metrics"])]
    kept = folder / "paced" / "capability"
    return Run(
        steps,
        tables,
        _name(folder, record),
        record,
        folders,
        warnings,
        decisions=_rows(kept / "history.parquet"),
        transfer=_rows(kept / "transfer.parquet"),
        seen=_last_written(files),
    )


def _unrecorded(path: Path) -> Run:
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    if not files:
        raise PacedError(
            f"{path}: expected the trainer.default_local_dir of a run, with paced/run.json in it, or metrics of verl's "
            "file logger (*.jsonl, trainer.logger=[console,file]); found neither."
        )
    steps, warnings = join(files)
    if not steps and warnings:
        raise PacedError(f"{path}: expected metrics of verl's file logger (JSON lines). {warnings[0]}")
    warnings.append(
        "There is no paced/run.json: settings, versions, the run's length and how it ended are not known, and there "
        "are no pass rates of single prompts. Runs of verl's own trainers, as with +paced=advantage, keep none."
    )
    return Run(steps, {}, path.stem, warnings=warnings, seen=_last_written(files))


def _rows(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file.is_file() else []


def _tables(folder: Path) -> dict[int, PassRateTable]:
    found = {}
    for file in (folder / "paced" / "pass_rates").glob("after_step_*.parquet"):
        if match := re.fullmatch(r"after_step_(\d+)", file.stem):
            found[int(match[1])] = PassRateTable.load(file)
    return dict(sorted(found.items()))


def _checkpoints(folder: Path) -> dict[int, Path]:
    found = {}
    for kept in folder.glob("global_step_*/paced"):
        if match := re.fullmatch(r"global_step_(\d+)", kept.parent.name):
            found[int(match[1])] = kept
    return dict(sorted(found.items()))


def _name(folder: Path, record: Mapping[str, Any]) -> str:
    trainer = record.get("config", {}).get("trainer", {})
    return str(trainer.get("experiment_name") or folder.name)


def _last_written(files: Iterable[Path]) -> float | None:
    return max((file.stat().st_mtime for file in files if file.exists()), default=None)


def read_all(paths: Iterable[Path]) -> list[Run]:
    """Read several runs, and give those of one name the folders' names, too."""
    paths = list(paths)
    runs = [Run.read(path) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({path})") if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths, strict=True)
    ]


def default_page(path: Path) -> Path:
    """Where the page of the run at ``path`` (:meth:`Run.read`) goes unless somebody says otherwise."""
    if path.is_file():
        return path.with_suffix(".html")
    return path / "paced" / "report.html" if (path / "paced").is_dir() else path / "report.html"


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        state: ``finished``; ``aborted`` where it said so itself; ``running``; ``silent`` where neither an end nor a
            sign of life has been written for long, as after a kill; ``unknown`` without a record.
        cause: What it died of.
        silent: Seconds since it last wrote anything.
    """

    state: str
    cause: str | None = None
    silent: float | None = None


def status(run: Run, now: float | None = None) -> Status:
    """How a run stands at a time (seconds since 1970, by default the present)."""
    if not run.record:
        return Status("unknown")
    last = run.record["attempts"][-1]
    if last.get("cause"):
        return Status("aborted", last["cause"])
    if "ended" in last or (run.total is not None and run.step >= run.total):
        return Status("finished")
    silent = (time.time() if now is None else now) - (run.seen or 0)
    return Status("silent" if silent > patience(run) else "running", silent=silent)


def patience(run: Run) -> float:
    """Seconds without a sign of life after which a run is called silent: 10 of its steps, an hour at least."""
    seconds = sorted(run.series("timing_s/step").values())
    return max(3600.0, 10 * seconds[len(seconds) // 2] if seconds else 0.0)
