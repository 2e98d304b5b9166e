"""What the command does with a person's mistakes, and with its own; and what a pipe gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.table import Table
from typer.testing import CliRunner

from paced_verl import cli
from paced_verl.cli import console
from paced_verl.config import ConfigError
from paced_verl.evaluate import EvaluationError
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.teacher.context import ContextError

LONG = "paced.teacher.context: " + "a long word " * 200 + "end"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.mark.parametrize("mistake", [ConfigError, ContextError, EvaluationError, FileNotFoundError, ConnectionError])
def test_a_mistake_is_one_unbroken_message_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, mistake: type[Exception]
) -> None:
    def fail(*_: Any) -> str:
        raise mistake(LONG)

    monkeypatch.setattr("paced_verl.launch.hydra.describe", fail)
    result = run("plan")
    assert result.exit_code == 1
    assert result.stderr == LONG + "\n"
    assert not result.stdout


def test_a_fault_of_the_program_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paced_verl.launch.hydra.describe", lambda _: str(np.ones(2) + np.ones(3)))
    result = run("plan")
    assert isinstance(result.exception, ValueError)
    assert "could not be broadcast" in str(result.exception)


def test_a_wrong_table_is_a_mistake(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [0], "rate": [0.5]}), tmp_path / "rates.parquet")
    result = run("pass-rates", "show", tmp_path / "rates.parquet")
    assert result.exit_code == 1
    assert "expected columns prompt, successes, samples, but samples, successes is missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_pipe_gets_lines_as_long_as_they_are(tmp_path: Path) -> None:
    table = PassRateTable(4)
    table.observe([0, 1], [2, 4], [4, 4], step=1)
    table.save(tmp_path / "rates.parquet")
    lines = run("pass-rates", "show", tmp_path / "rates.parquet").stdout.splitlines()
    assert lines[0] == ("4 prompts, 50% seen, 4.0 samples each; pass rate 0.750 on average; 50% weigh 0 under p(1−p)")
    bars = [line for line in lines if "█" in line]
    assert [line.count("█") for line in bars] == [30, 30]


def test_the_teachers_table_beside_it_makes_a_table_of_both(tmp_path: Path) -> None:
    student, teacher = PassRateTable(4, fingerprint="mine"), PassRateTable(4, fingerprint="mine")
    student.observe([0, 1, 2], [0, 0, 4], [4, 4, 4], step=1)
    teacher.observe([0, 1, 3], [1, 0, 1], [1, 1, 1], step=1)
    student.save(tmp_path / "pass_rates.parquet")
    teacher.save(tmp_path / "teacher_pass_rates.parquet")
    shown = run("pass-rates", "show", tmp_path / "pass_rates.parquet").stdout
    assert "teacher: pass rate 0.667 over the 3 prompts it was judged on" in shown
    rows = [re.findall(r"│\s*(\d+)\s*(?=│)", line) for line in shown.splitlines() if line.startswith("│")]
    assert rows[-4:] == [["1", "0", "1", "0"], ["0", "0", "0", "0"], ["0", "0", "0", "1"], ["0", "0", "1", "0"]]
    PassRateTable(4, fingerprint="other").save(tmp_path / "other.parquet")
    other = run("pass-rates", "show", tmp_path / "pass_rates.parquet", "--teacher", tmp_path / "other.parquet")
    assert other.exit_code == 1
    assert "expected pass rates of data set mine" in other.stderr


@pytest.mark.parametrize(
    "command", [("accuracy", "--model", "m", "--data", "d"), ("retention", "--before", "a", "--after", "b")]
)
def test_where_a_report_cannot_be_written_is_said_before_anything_else(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    for out, words in (
        (tmp_path, f"--out {tmp_path} is a folder"),
        (tmp_path / "file" / "report.json", "cannot be written"),
        ("/proc/nowhere/report.json", "cannot be written"),
    ):
        result = run("eval", *command, "--out", out)
        assert result.exit_code == 1
        assert words in result.stderr


def test_a_report_that_can_be_written_leaves_nothing_behind_when_another_thing_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    result = run("eval", "accuracy", "--model", tmp_path / "gone", "--data", tmp_path / "gone.parquet", "--out", out)
    assert "gone.parquet does not exist" in result.stderr
    assert not list(out.parent.iterdir())


def test_a_table_in_a_pipe_is_as_wide_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("data", "accuracy %")
    table.add_row("a/" * 100, "50.0")
    console.show(table)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "50.0" in line]
    assert "a/" * 100 in row
