"""Runs a part of the programme on several processes, each on one thread, and goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from scripts.experiments.evidence.cells import AGAIN, APART, CELLS, SMOKE, Cell, Job, estimates, jobs, runs
from tqdm import tqdm

from scripts.experiments.evidence import rows
from scripts.experiments.evidence.distil import BATCH, RATE, Distillation
from scripts.experiments.evidence.world import World, build

TABLES, SCRATCH = Path("docs/experiments/evidence"), Path("outputs/evidence")
SECONDS = {"world": 9.0, "start": 0.9, "step": 0.018}
"""Processor seconds of a world, of a run's estimate and accuracies, and of a step; on one thread of 2.6 GHz."""


def key(job: Job, cell: Cell, arm: str, stages: str, points: tuple[int, ...]) -> str:
    """Names a run, and what it was set to."""
    settings = {
        "regime": dataclasses.asdict(cell.regimes[job.regime]),
        "arm": dataclasses.asdict(cell.arms[arm]),
        "points": points,
        "batch": BATCH,
        "rate": RATE,
    }
    return "/".join([job.cell, job.family, job.regime, stages, arm, str(job.seed), rows.fingerprint(settings)])


def one_run(world: World, job: Job, cell: Cell, arm: str, stages: str, points: tuple[int, ...]) -> rows.Row:
    """A run, as a row: what it is, and its curve as lists."""
    seed = job.seed + (APART if arm == AGAIN else 0)
    found = Distillation(world, cell.arms[arm], stages, points[-1], seed).run(list(points))
    refresh = cell.arms[arm].block["pass_rate"]["refresh"]
    return {
        "key": key(job, cell, arm, stages, points),
        **dataclasses.asdict(job),
        "arm": arm,
        "stages": stages,
        "entry": found["estimate"][1] if estimates(cell.arms[arm]) and refresh != "draw" else 0,
        **{f"regime_{name}": value for name, value in dataclasses.asdict(cell.regimes[job.regime]).items()},
        **found,
    }


def do(job: Job, cell: Cell, done: frozenset[str], cache: Path, folder: Path) -> int:
    """The runs of a world that are not done; returns how many they were."""
    torch.set_num_threads(1)
    left = [run for run in runs(cell) if key(job, cell, *run) not in done]
    if left:
        world = build(cell.regimes[job.regime], job.family, job.seed, cache)
        for run in left:
            rows.append(folder, one_run(world, job, cell, *run) | {"commit": commit(), "torch": torch.__version__})
    return len(left)


def perform(name: str, processes: int = 2, scratch: Path = SCRATCH, tables: Path = TABLES) -> int:
    """Run what is missing of a part, and bring its table up to date; returns the rows that it has."""
    cell = (CELLS | SMOKE)[name]
    file, folder = tables / f"{name}.parquet", scratch / name
    done = frozenset(row["key"] for row in [*rows.load(file), *rows.appended(folder)])
    todo = [job for job in jobs(name, cell) if any(key(job, cell, *run) not in done for run in runs(cell))]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(do, job, cell, done, scratch / "models", folder) for job in todo]
        for future in tqdm(as_completed(futures), total=len(futures), desc=name):
            future.result()
    return rows.compact(file, folder)


def commit() -> str:
    """Of the source, with + where it has changes that are not committed; empty outside of a checkout."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def plan(names: list[str]) -> Iterator[tuple[str, int, int, float]]:
    """Of each part: worlds, runs and hours on one process."""
    for name in names:
        cell = (CELLS | SMOKE)[name]
        worlds, each = len(list(jobs(name, cell))), list(runs(cell))
        a_world = SECONDS["world"] + sum(SECONDS["start"] + SECONDS["step"] * points[-1] for *_, points in each)
        seconds = worlds * a_world
        yield name, worlds, worlds * len(each), seconds / 3600
