"""What a person gets wrong is said in one line, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from paced_verl.cli import app


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    file = tmp_path / "test.parquet"
    pq.write_table(pa.table({"data_source": ["maths"], "prompt": ["2+2"], "reward_model": ["4"]}), file)
    return file


def test_accuracy(tmp_path: Path, problems: Path) -> None:
    def accuracy(*arguments: object, model: Path = tmp_path / "model", data: Path = problems) -> str:
        return refused("accuracy", *arguments, "--model", model, "--data", data, "--out", tmp_path / "out.json")

    assert "there is none" in accuracy()
    assert "no weights" in accuracy(model=tmp_path)
    assert "gone.parquet does not exist" in accuracy(data=tmp_path / "gone.parquet")
    assert "Could not override 'data.x'" in accuracy("data.x=1")
    (tmp_path / "text.parquet").write_text("text")
    assert "expected a parquet file" in accuracy(data=tmp_path / "text.parquet")
    pq.write_table(pa.table({"question": ["2+2"]}), tmp_path / "other.parquet")
    missing = accuracy(data=tmp_path / "other.parquet")
    assert "no column data_source, prompt, reward_model; it has question" in missing
    assert not (tmp_path / "out.json").exists()


def test_retention(tmp_path: Path) -> None:
    there = tmp_path / "model"
    there.mkdir()
    (there / "config.json").write_text("{}")
    (there / "model.safetensors").write_bytes(b"w")
    out = ("--out", tmp_path / "out.json")
    for before, after in ((tmp_path / "gone", there), (there, tmp_path / "gone")):
        assert "gone: expected the folder of a model" in refused(
            "retention", "--before", before, "--after", after, *out
        )
    missing = ("--include-path", tmp_path / "nowhere")
    assert "nowhere: expected a folder" in refused("retention", "--before", there, "--after", there, *missing, *out)
