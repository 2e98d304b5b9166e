"""FSDP (1), which no launch on a CPU can run, on two ranks: the teacher in the trainer's workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROOT
from tests.teacher.test_engine import write_model


def test_a_teacher_in_the_workers_answers_under_fsdp1_on_two_ranks(tmp_path: Path) -> None:
    """Its answers, its moving average, its files and the head of the whole vocabulary, against the model by itself."""
    for name, seed in (("student", 2), ("teacher", 1)):  # of one shape: seed 0 ties the head to the embeddings
        write_model(tmp_path / name, seed)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*ranks, "-m", "tests.e2e.fsdp1_ranks", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
