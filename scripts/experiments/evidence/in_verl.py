"""The two regimes that matter most, with verl's trainer, servers and FSDP: do signs and sizes agree?

The task is the quickstart's. Half of the prompts are sums, which the student has never seen; the teacher has, or has
not. Every arm of a regime and a seed begins with the same models, and all runs are as long. Models are trained for a
time and not for a number of steps, so that a seed has others on another machine: what is compared later has new seeds,
and uniform runs of its own.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paced_verl.report.run import Run
from paced_verl.report.tokens import ALL, by_kind
from scripts import quickstart, tiny_models
from scripts.experiments.evidence.arms import ARMS, Arm
from scripts.experiments.evidence.predictions import R2, R3
from scripts.experiments.rows import in_processes

Cell = tuple[str, int, str]
"""A regime, a seed and an arm."""
STEPS = 48
COMPARED = {
    range(100, 105): ("uniform", "weights, zeros drawn", "sampler"),
    range(105, 110): ("uniform", "teacher correct", "posterior sampler"),
}
"""Arms by their seeds."""
_QUICKSTART = tiny_models.PRESETS["two_stage", "full"]
assert _QUICKSTART.teacher is not None
_MIXED = replace(_QUICKSTART, train=512, turns=("spell_backward", "chain_sum"))
PRESETS = {
    R2: replace(_MIXED, teacher=replace(_QUICKSTART.teacher, seen={"spell_backward": tiny_models.WORDS})),
    R3: replace(_MIXED, held_out=("spell_backward", "chain_sum")),
}


def overrides(arm: Arm) -> tuple[str, ...]:
    """An arm as a user sets it on the command line."""
    keys = tuple(
        f"paced.{section}.{key}={json.dumps(value)}"
        for section, values in arm.block.items()
        for key, value in values.items()
        if value is not None
    )
    return keys + (("paced.targets.keep=correct",) if arm.keep_correct else ())


def todo(rows: Iterable[dict[str, Any]]) -> list[Cell]:
    """The runs that have no row yet, arm by arm: a whole comparison says more than parts of two."""
    known = {(row["regime"], row["seed"], row["arm"]) for row in rows}
    cells = [
        (regime, seed, arm) for seeds, arms in COMPARED.items() for arm in arms for seed in seeds for regime in PRESETS
    ]
    return [cell for cell in cells if cell not in known]


def run(cells: Sequence[Cell], folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Models, then runs, some at a time; yields a row each as it is done. Those that were killed go on."""
    places = dict.fromkeys((regime, seed) for regime, seed, _ in cells)
    for _ in in_processes(make, [(folder, *where) for where in places], processes):
        pass
    yield from in_processes(one, [(folder, *cell) for cell in cells], processes)


def place(folder: Path, regime: str, seed: int) -> Path:
    return folder / f"{regime.split()[0]}-{seed}"


def make(folder: Path, regime: str, seed: int) -> None:
    """Data, teacher and student of a regime and a seed, where they are not there."""
    import torch

    torch.set_num_threads(1)
    tiny_models.build(place(folder, regime, seed) / "models", PRESETS[regime], seed, fresh=False)


def one(folder: Path, regime: str, seed: int, arm: str) -> dict[str, Any]:
    """A run to its end, and its row."""
    found = launched(place(folder, regime, seed), arm, preset="full", seed=seed, steps=STEPS)
    return found | {"regime": regime, "seed": seed, "arm": arm}


def smoke(folder: Path) -> dict[str, Any]:
    """The row of one short run of the quickstart's smallest models: that the machinery works."""
    tiny_models.build(folder / "models", tiny_models.PRESETS["two_stage", "test"], 0, fresh=False)
    return launched(folder, "sampler", preset="test", seed=0, steps=4)


def launched(here: Path, arm: str, **settings: Any) -> dict[str, Any]:
    """What an arm's run says of itself, with the models beside it."""
    args = argparse.Namespace(recipe="two_stage", keep_going=True, **settings)
    out = here / re.sub(r"\W+", "-", arm)  # Hydra reads commas
    quickstart.launch(overrides(ARMS[arm]), out, here / "models", args)
    return row(Run.read(out / "checkpoints"))


def row(run: Run) -> dict[str, Any]:
    """Accuracy and tokens by step, and tokens by kind."""
    accuracy, spent = run.accuracy(), ALL.cumulative(run)
    return {
        "step": list(accuracy),
        "accuracy": list(accuracy.values()),
        "tokens": [spent.get(step, 0.0) for step in accuracy],
        **by_kind(run),
    }
