"""What a run leaves for its report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from paced_verl.pacing.schedule import Schedule
from paced_verl.run.record import metrics_file, record_end, write_record

STAGES = [{"divergence": "forward_kl", "responses": "teacher"}, {"divergence": "reverse_kl", "responses": "student"}]
SCHEDULE = Schedule.from_ends([0.5, 1.0], STAGES, 10)


def config(logger: object = ("console", "file")) -> DictConfig:
    trainer = {"logger": logger, "project_name": "p", "experiment_name": "e", "steps": "${total}"}
    return OmegaConf.create({"total": 10, "trainer": trainer})


def test_a_record_names_the_run_and_each_of_its_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, name in ((0, "first"), (4, "second")):
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / f"{name}.jsonl"))
        write_record(tmp_path / "paced", config(), SCHEDULE, prompts=7, fingerprint="f", step=step)
    record = json.loads((tmp_path / "paced" / "run.json").read_text())
    assert record["config"]["trainer"]["steps"] == 10
    assert [(stage["first"], stage["last"]) for stage in record["schedule"]] == [(1, 5), (6, 10)]
    assert (record["prompts"], record["fingerprint"]) == (7, "f")
    assert record["versions"]["verl"] == "0.9.1"
    assert [(attempt["after_step"], Path(attempt["metrics"]).name) for attempt in record["attempts"]] == [
        (0, "first.jsonl"),
        (4, "second.jsonl"),
    ]
    write_record(tmp_path / "paced", config(), SCHEDULE, prompts=7, fingerprint="f", step=0)
    assert len(json.loads((tmp_path / "paced" / "run.json").read_text())["attempts"]) == 1, "a new run in its place"


def test_a_record_says_how_its_last_attempt_ended(tmp_path: Path) -> None:
    folder = tmp_path / "paced"
    for step, cause in ((0, None), (4, "OSError: disk full"), (6, None)):
        write_record(folder, config(), SCHEDULE, prompts=7, fingerprint="f", step=step)
        if step:
            record_end(folder, cause)
    attempts = json.loads((folder / "run.json").read_text())["attempts"]
    assert "ended" not in attempts[0], "it was killed"
    assert [attempt["cause"] for attempt in attempts[1:]] == ["OSError: disk full", None]
    assert all(attempt["began"] <= attempt["ended"] for attempt in attempts[1:])


def test_the_metrics_are_where_verls_logger_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils.tracking import FileLogger

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    for root in (None, str(tmp_path / "root")):
        if root is not None:
            monkeypatch.setenv("VERL_FILE_LOGGER_ROOT", root)
        logger = FileLogger("p", "e")
        assert metrics_file(config()) == Path(logger.filepath).resolve()
        logger.finish()
    assert metrics_file(config("console")) is None


def test_what_an_attempt_logged_is_kept_from_the_next_ones_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts whose environment says the same; the second is killed while it begins, before it logs."""
    from verl.utils.tracking import FileLogger

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    for step, steps in ((0, (1, 2)), (2, ()), (2, (3,))):
        write_record(tmp_path / "paced", config(), SCHEDULE, prompts=7, fingerprint="f", step=step)
        if steps:
            logger = FileLogger("p", "e")
            for trained in steps:
                logger.log({"x": trained}, trained)
            logger.finish()
    attempts = json.loads((tmp_path / "paced" / "run.json").read_text())["attempts"]
    names = [Path(attempt["metrics"]).name for attempt in attempts]
    assert names == ["metrics.attempt-1.jsonl", "metrics.attempt-2.jsonl", "metrics.jsonl"]
    logged = [json.loads(line)["step"] for line in (tmp_path / names[0]).read_text().splitlines()]
    assert logged == [1, 2]
    assert not (tmp_path / names[1]).exists()


def test_what_is_no_file_of_metrics_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "pipe"))
    for step in (0, 2):
        write_record(tmp_path / "paced", config(), SCHEDULE, prompts=7, fingerprint="f", step=step)
    assert (tmp_path / "pipe").is_fifo(), "it may be /dev/stdout"
