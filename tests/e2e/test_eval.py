"""``paced-verl eval accuracy`` on a checkpoint of verl, with the overrides of a paced run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from paced_verl.tasks.reward import compute_score
from tests.e2e.harness import TIMEOUT, Workplace, kill_all

SAMPLES = 4


def checkpoint(student: Path, step: Path) -> Path:
    """The student as one FSDP rank of verl saves it."""
    actor = step / "actor"
    shutil.copytree(student, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(student / "model.safetensors")
    torch.save(weights, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    return step


def test_accuracy_is_what_verls_own_validation_says(workplace: Workplace) -> None:
    step = checkpoint(workplace.models / "student", workplace.folder / "global_step_5")
    data, out = workplace.models / "data" / "test.parquet", workplace.folder / "results.json"
    command = [sys.executable, "-m", "paced_verl.cli", "eval", "accuracy", "+paced=two_stage", *workplace.overrides(6)]
    command += ["--model", str(step), "--data", str(data), "--samples", str(SAMPLES), "--out", str(out)]
    try:
        done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True, timeout=TIMEOUT)
    finally:
        kill_all()
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    found = report["results"][str(data)]
    files = Path(found["files"])

    assert report["weights"] == str(step / "actor" / "merged")
    merged = load_file(step / "actor" / "merged" / "model.safetensors")
    for name, weight in load_file(workplace.models / "student" / "model.safetensors").items():
        assert torch.equal(merged[name], weight.bfloat16()), name

    rows = pq.read_table(data).to_pylist()
    assert (found["problems"], found["rows"], found["missing_samples"]) == (len(rows), len(rows), 0)
    said = re.findall(
        rf"'val-core/\S+/acc/mean@{SAMPLES}': (?:np\.float64\()?([\d.]+)", (files / "run.log").read_text()
    )
    assert said, "verl's own line of metrics"
    assert found["accuracy"] == pytest.approx(float(said[-1]))
    answers = [json.loads(line) for line in (files / "0.jsonl").read_text().splitlines()]
    right = [compute_score(rows[0]["data_source"], answer["output"], answer["gts"])["acc"] for answer in answers]
    assert found["accuracy"] == pytest.approx(sum(right) / (SAMPLES * len(rows)))
    assert 0 < found["accuracy"] < 1
    assert 0 < found["standard_error"] < 0.13, "at most .5 / sqrt(15)"
    # Nothing of the training run was started or touched.
    assert not workplace.checkpoints.exists()
    assert "paced-verl will run" not in (files / "run.log").read_text()
