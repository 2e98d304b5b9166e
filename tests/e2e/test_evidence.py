"""The programme of docs/experiments.md, short: killed and gone on with it leaves the rows of an undisturbed one."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.experiments.evidence import world as worlds
from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.cells import EXPERIMENTS
from scripts.experiments.evidence.distil import Distillation
from scripts.experiments.evidence.problems import mask, right
from scripts.experiments.evidence.regimes import REGIMES, SEEN

ROOT = Path(__file__).resolve().parents[2]
RUNS = 2 * len(EXPERIMENTS)
"""Two of every part of the programme."""


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "scripts.experiments.evidence", "run", "--smoke", "--folder", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found = {file.name: json.loads(file.read_text()) for file in (folder / "rows").glob("*.json")}
    for row in found.values():
        del row["seconds"]
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs were killed as soon as there was a row, and gone on with."""
    folder = tmp_path_factory.mktemp("evidence")
    process = start(folder)
    for _ in range(6000):
        if list((folder / "rows").glob("*.json")) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(rows(folder)) < RUNS
    assert start(folder).wait(timeout=300) == 0
    return folder


def test_what_is_killed_goes_on_as_if_it_had_not_been(ran: Path, tmp_path: Path) -> None:
    found = rows(ran)
    assert len(found) == RUNS
    (tmp_path / "models").symlink_to(ran / "models")
    assert start(tmp_path).wait(timeout=300) == 0
    assert json.dumps(rows(tmp_path), sort_keys=True) == json.dumps(found, sort_keys=True)


def test_verls_own_trainer_makes_a_row_of_a_run(tmp_path: Path) -> None:
    """The arm's estimates are in it, as tokens of a kind of their own."""
    command = [sys.executable, "-m", "scripts.experiments.evidence", "verl", "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    row = ast.literal_eval(done.stdout[done.stdout.rindex("{") :])
    assert row["step"][0] == 0
    assert row["step"][-1] == 4
    assert row["tokens"] == sorted(row["tokens"])
    assert row["tokens"][0] < row["tokens"][-1]
    assert all(0 <= accuracy <= 1 for accuracy in row["accuracy"])
    assert row["paced/tokens/estimate/generated"] > 0


@pytest.mark.parametrize(
    ("regime", "right_share"), [("R2 hopeless, wrong teacher", 0.5), ("R3 hopeless, right teacher", 1)]
)
def test_a_regime_is_what_it_says(regime: str, right_share: float, ran: Path) -> None:
    """Measured anew: shares of the classes, and where the teacher is right in responses and in probabilities."""
    torch.set_num_threads(1)
    world = worlds.build(REGIMES[regime], "reverse", 0, ran / "models")
    assert world.kind.bincount().tolist() == [256, 205, 51]
    generator = torch.Generator().manual_seed(5)
    rate = worlds.measured("reverse", world.models.student, world.train, 32, generator)
    assert rate[world.kind == 0].mean() < 0.03
    assert 0.3 < rate[world.kind == 1].mean() < 0.7
    assert rate[world.kind == 2].mean() > 0.85
    run = Distillation(world, ARMS["uniform"], "forward", 1, 0)
    everything = torch.arange(len(world.train))
    answers = run._sampled_by_teachers(everything)
    assert right("reverse", answers, world.train.solutions).float().mean() == pytest.approx(right_share, abs=0.03)
    greedy = run._teacher_logits(everything, world.train.prompts, world.train.solutions).argmax(-1)
    agrees = ((greedy == world.train.solutions) | (mask(world.train.solutions) == 0)).all(1)
    assert agrees.float().mean() == pytest.approx(right_share, abs=0.03)
    assert not torch.isin(world.train.lengths[world.wrong_teacher], torch.tensor(SEEN)).any()
