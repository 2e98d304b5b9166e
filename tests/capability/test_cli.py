"""``paced-verl capability``, on run folders as runs leave them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from paced_verl.cli import app
from tests.capability.test_interventions import METRIC, MIXES, NAMES, TRANSFER, history

R = np.array([0.6, 0.3, 0.1])


def said(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["capability", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Folders of interventions whose metric is worth R of the scores."""
    found = []
    for name, mix in MIXES.items():
        folder = tmp_path / name.replace(" ", "_")
        (folder / "paced" / "capability").mkdir(parents=True)
        rows = history(mix, before_se=1e-4, after_se=1e-4)
        pq.write_table(pa.Table.from_pylist(rows), folder / "paced" / "capability" / "history.parquet")
        gain = sum(R[NAMES.index(row["capability"])] * (row["after"] - row["before"]) for row in rows)
        lines = [{"step": 0, "data": {METRIC: 0.4}}, {"step": 5, "data": {METRIC: 0.4 + gain}}]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        record = {
            "config": {},
            "schedule": [],
            "attempts": [{"metrics": str(folder / "metrics.jsonl"), "began": "now", "after_step": 0}],
        }
        (folder / "paced" / "run.json").write_text(json.dumps(record))
        found.append(folder)
    return found


def test_headroom_prints_the_transfer_the_best_mix_and_a_verdict(runs: list[Path]) -> None:
    text = said("headroom", *runs, "--requirement", "{code: 0.2, maths: 0.2, words: 0.6}", "--tokens", "5e6").stdout
    printed = [[float(cell) for cell in re.findall(r"([+-][\d.]+) \(", line)] for line in text.splitlines()]
    assert np.array([row for row in printed if len(row) == 3]) == pytest.approx(TRANSFER, abs=0.002)
    assert "for 5,000,000 tokens" in text
    assert re.search(r"static mix: the requirement\W+20%\W+20%\W+60%", text)
    assert re.search(r"It pays to decide|Do not bother|Not known", text)
    assert "Trained on alone, maths costs code. A student" in text


def test_requirement_prints_what_to_paste(runs: list[Path]) -> None:
    text = said("requirement", *runs, "--utility", METRIC).stdout
    assert "0.400 before" in text
    assert "requirement: {code: 0.6, maths: 0.3, words: 0.1}" in text
    assert re.search(r"code\W+0\.600\W+0\.\d+ to 0\.\d+", text)


def test_a_mistake_is_one_message(runs: list[Path]) -> None:
    few = said("headroom", *runs[:2])
    assert (few.exit_code, few.stdout) == (1, "")
    assert "2 interventions for 3 capabilities" in few.stderr
    metric = said("requirement", *runs, "--utility", "val-core/word/acc/mean@4")
    assert metric.exit_code == 1
    assert f"Did you mean '{METRIC}'?" in metric.stderr
    (runs[1] / "paced" / "capability" / "history.parquet").unlink()
    assert "on_maths: expected paced/capability/history.parquet" in said("headroom", *runs).stderr
    assert "--requirement: expected {name: share" in said("headroom", *runs[:1], *runs[2:], "--requirement", "x").stderr


def test_card_reads_cards_and_says_what_it_is_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        def __init__(self, path: str) -> None:
            assert path == "an/encoder"

        def __call__(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, 0.0] if "sum" in text else [0.0, 1.0] for text in texts])

    monkeypatch.setattr("paced_verl.capability.card.Encoder", Encoder)
    cards = [{"text": f"a sum {i}", "requirement": {"maths": 1.0}} for i in range(6)]
    cards += [{"text": f"a program {i}", "requirement": {"code": 0.9, "maths": 0.1}} for i in range(6)]
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    options = ("--encoder", "an/encoder", "--names", "code,maths")
    text = said("card", tmp_path / "cards.json", "--text", "the sum of two", *options).stdout
    assert "The text tells something" in text
    found = re.search(r"requirement: \{code: ([\d.]+), maths: ([\d.]+)\}", text)
    assert found is not None
    assert float(found[2]) > 0.9
    (tmp_path / "cards.json").write_text("{: [")
    assert "is no YAML" in said("card", tmp_path / "cards.json", "--text", "x", *options).stderr
