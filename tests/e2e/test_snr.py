"""``paced-verl diagnose snr`` over Ray's workers: what one process finds, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from paced_verl.checks import check
from paced_verl.gradients.inputs import Options, resolve
from paced_verl.gradients.worker import Worker
from paced_verl.launch.hydra import compose
from paced_verl.pacing.pass_rates import PassRateTable
from tests.e2e.harness import TIMEOUT, Workplace, kill_all


@pytest.mark.parametrize("stage", [1, 2])
def test_two_workers_find_what_one_process_does(workplace: Workplace, tmp_path: Path, stage: int) -> None:
    prompts = pq.read_metadata(workplace.models / "data" / "train.parquet").num_rows
    table = PassRateTable(prompts)
    table.observe(np.arange(prompts), np.arange(prompts) % 5, np.full(prompts, 4), step=0)
    table.save(tmp_path / "rates.parquet")
    overrides = ["+paced=two_stage", *workplace.overrides(6), f"paced.pass_rate.file={tmp_path}/rates.parquet"]
    overrides += ["paced.targets.column=extra_info.solution"]
    command = [sys.executable, "-m", "paced_verl.cli", "diagnose", "snr", *overrides, "--out", str(tmp_path / "snr")]
    command += ["--per-bin", "3", "--workers", "2", "--stage", str(stage), "--dimensions", "2048"]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    finally:
        kill_all()
    assert done.returncode == 0, done.stdout + done.stderr

    config = compose(overrides)
    found = resolve(config, check(config)[0], Options(stage=stage, per_bin=3, dimensions=2048))
    worker = Worker(found.recipe)
    assert len(found.problems) == 15
    for problem in found.problems:
        expected = worker.gradient(problem)
        part = tmp_path / "snr" / "parts" / f"{problem.prompt}-{found.recipe.key(problem)}.parquet"
        (row,) = pq.read_table(part).to_pylist()
        assert row["squared_norm"] == pytest.approx(expected.squared_norm, rel=1e-5)
        np.testing.assert_allclose(row["sketch"], expected.sketch, rtol=1e-3, atol=1e-3 * np.abs(expected.sketch).max())
