"""The programme: which arms meet which regimes, by which divergences, how long, with which seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.experiments.evidence.arms import ARMS, Arm
from scripts.experiments.evidence.regimes import REGIMES, Regime

CALIBRATION, SEEDS = tuple(range(5)), tuple(range(100, 120))
SHORT = ("uniform", "weights", "sampler", "posterior sampler", "teacher correct", "teacher gate, sampler")
AGAIN = "uniform again"
APART = 50_000
"""Added to the seed of a run of ``AGAIN``: another order of the prompts and other samples in the same world."""
POINTS = (0, 3, 6, 12, 24, 36, 48)
LONGER = (0, 3, 6, 12, 24, 36, 48, 72, 96, 120)
BUDGET = (0, 4, 8, 16, 32, 64, 128, 256, 448, 640)


@dataclass(frozen=True)
class Cell:
    """A part of the programme.

    Attributes:
        regimes: By name.
        arms: By name.
        seeds: Of worlds and runs.
        families: Of problems.
        stages: Keys of ``distil.STAGES``.
        points: Steps at which accuracy is measured; the last one is the end.
        longer: The same for arms that estimate nothing: what the others pay for estimates, these train on.
    """

    regimes: dict[str, Regime]
    arms: dict[str, Arm]
    seeds: tuple[int, ...] = SEEDS
    families: tuple[str, ...] = ("reverse",)
    stages: tuple[str, ...] = ("forward",)
    points: tuple[int, ...] = POINTS
    longer: tuple[int, ...] = LONGER


@dataclass(frozen=True)
class Job:
    """All runs of a cell in one world."""

    cell: str
    family: str
    regime: str
    seed: int


def _some(*names: str) -> dict[str, Regime]:
    return {name: regime for name, regime in REGIMES.items() if name.split()[0] in names}


def _arms(*names: str) -> dict[str, Arm]:
    return {name: ARMS[name] for name in names}


def _dose() -> dict[str, Regime]:
    """Shares of hopeless prompts and how reliable the teacher is there; the others are frontier and mastered, 4 to 1."""
    base = REGIMES["R2 hopeless, wrong teacher"]
    return {
        f"R2 h={h:g} τ={tau:g}": dataclasses.replace(
            base, hopeless=h, frontier=0.8 * (1 - h), mastered=0.2 * (1 - h), teacher=tau
        )
        for h in (0.2, 0.4, 0.6, 0.8)
        for tau in (0.0, 0.25, 0.5, 0.75, 1.0)
    }


def _samples() -> dict[str, Arm]:
    """The sampler and the posterior sampler by K samples a prompt."""
    found = _arms("uniform", "oracle", "sampler, when drawn", "free estimates")
    for name in ("sampler", "posterior sampler"):
        block = ARMS[name].block
        for k in (1, 2, 4, 8, 16, 32):
            if name == "sampler" and k == 1:
                continue  # one sample gives every prompt weight 0
            changed = block | {"pass_rate": block["pass_rate"] | {"samples": k}}
            found[f"{name}, K={k}"] = dataclasses.replace(ARMS[name], block=changed)
    for every in (8, 16):
        block = ARMS["sampler"].block
        changed = block | {"pass_rate": block["pass_rate"] | {"refresh": "every", "every_steps": every}}
        found[f"sampler, every {every} steps"] = dataclasses.replace(ARMS["sampler"], block=changed)
    return found


_WITHOUT_ORACLE = {name: arm for name, arm in ARMS.items() if name != "oracle"}
_MAP = _some("R0", "R1", "R2", "R3", "R4", "R5", "R7")
CELLS = {
    "E0": Cell(_MAP, _arms("uniform", AGAIN, "sampler"), seeds=CALIBRATION),
    "E1": Cell(_MAP, ARMS),
    "E2": Cell(_dose(), _arms("uniform", "sampler", "posterior sampler", "teacher correct"), seeds=SEEDS[:10]),
    "E3": Cell(_some("R0", "R2", "R3", "R6"), _arms(*SHORT[:5]), seeds=SEEDS[:10], points=BUDGET, longer=BUDGET),
    "E4": Cell(_some("R0", "R2", "R3"), _samples(), seeds=SEEDS[:10]),
    "E5": Cell(
        _some("R0", "R2", "R3", "R7"),
        _arms(*SHORT),
        stages=("reverse", "two stages", "two stages, reversed"),
        longer=POINTS,
    ),
    "E6": Cell(_some("R0", "R2", "R3", "R7"), _arms(*SHORT), seeds=SEEDS[:10], families=("sums",)),
}
SMOKE = {
    "smoke": Cell(
        _some("R0", "R2"),
        _arms("uniform", AGAIN, "sampler", "placebo"),
        seeds=(0, 1),
        points=(0, 4, 8),
        longer=(0, 4, 8, 12),
    )
}


def estimates(arm: Arm) -> bool:
    """Whether an arm has the student sampled for nothing else than pass rates."""
    return bool(arm.block["pass_rate"]["refresh"] != "never")


def jobs(cell: str, of: Cell) -> Iterator[Job]:
    """Its worlds; seed by seed, so that a programme that is stopped has whole pairs."""
    for seed in of.seeds:
        for family in of.families:
            for regime in of.regimes:
                yield Job(cell, family, regime, seed)


def runs(of: Cell) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Its arms by stages, with the steps at which they are measured."""
    for stages in of.stages:
        for name, arm in of.arms.items():
            yield name, stages, of.points if estimates(arm) else of.longer
