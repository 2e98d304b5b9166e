"""The runs: verl's trainer on the quickstart's task and models, one after the other."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from paced_verl.report.run import Run
from scripts import quickstart

SAMPLES, STEPS, SEEDS = 4, 29, (0,)
COMMON = (f"paced.pass_rate.samples={SAMPLES}", "paced.sampler.power=1")
ARMS = {
    "start": ("paced.pass_rate.refresh=start", *COMMON),
    "draw": ("paced.pass_rate.refresh=draw", "paced.pass_rate.ahead=4", *COMMON),
}


def study(folder: Path) -> list[dict[str, Any]]:
    """A row a run; runs that are done are read again, one that was killed goes on."""
    models = folder / "models"
    subprocess.run([sys.executable, quickstart.ROOT / "scripts" / "tiny_models.py", "--out", str(models)], check=True)
    return [one(folder / f"{arm}-{seed}", models, arm, seed) for seed in SEEDS for arm in ARMS]


def one(folder: Path, models: Path, arm: str, seed: int) -> dict[str, Any]:
    args = argparse.Namespace(recipe="two_stage", preset="full", seed=seed, steps=STEPS, keep_going=True)
    quickstart.launch(ARMS[arm], folder, models, args)
    return row(Run.read(folder / "checkpoints"), arm, seed)


def row(run: Run, arm: str, seed: int) -> dict[str, Any]:
    """What a run cost and what came out: prompts measured, rollouts, held-out accuracy of each source by step."""
    measured = int(sum(run.series("paced/pass_rate/measured").values()))
    accuracy = run.accuracy()
    return {
        "arm": arm,
        "seed": seed,
        "prompts_measured": measured,
        "estimate_rollouts": measured * SAMPLES,
        "seconds_waited": sum(run.series("paced/pass_rate/seconds").values()),
        "seconds_in_steps": sum(run.series("timing_s/step").values()),
        "before": accuracy[0],
        "after": accuracy[STEPS],
    }
