"""The programme: which run belongs to which question."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scripts.experiments.evidence.arms import ARMS, Arm
from scripts.experiments.evidence.regimes import REGIMES, Regime

STEPS, LAST = 48, 1280
"""Of a run where nothing else is said, and of the longest."""
CALIBRATION, SEEDS = range(5), range(100, 120)
"""Regimes are looked at on the first ones; what is reported is of the others, which nothing was chosen on."""
SHORT = ("uniform", "weights", "sampler", "posterior sampler", "teacher correct")
DRAWN = ("sampler, when drawn", "posterior sampler, when drawn")
GATED = ("teacher gate", "teacher gate, sampler")
ZEROS = ("weights, zeros drawn",)
"""Of the arms whose steps differ in price, looked at in the paper's two stages and with verl, too."""
LONG = ("uniform", "sampler", "posterior sampler")
"""Of the long runs, whose teacher is right, so that a filter on its correctness changes nothing."""
SWEPT = (*LONG, "teacher correct")
COMPARED = tuple(name for name in ARMS if name not in ("free estimates", "predicted"))
"""Of the map, uniform first: free estimates need rollouts that train, and predicted ones are in E7."""
MAP = tuple(REGIMES)
BELOW = "R6 below an epoch"
SECOND = tuple(name for name in REGIMES if name.startswith("R7"))
RATES = (1e-4, 3e-4, 3e-3)
"""Learning rates beside the programme's, which was chosen on the calibration's seeds as uniform's best."""
LOWER = (1e-4, 3e-4, 1e-3)
"""Those of which one is the best of an arm in a regime."""
HOPELESS, RIGHT = (0.2, 0.4, 0.6, 0.8), (0.0, 0.25, 0.5, 0.75, 1.0)
Changes = tuple[tuple[str, float], ...]
MAIN = ("R0 balanced", "R2 hopeless, wrong teacher", "R3 hopeless, right teacher")
LONGEST = ("R3 hopeless, right teacher", BELOW)
"""512 prompts and 4,096, of the same classes: 640 steps are forty passes over the first, and five over the others."""
RULED = tuple(sorted((*MAIN, "R1 mastered", "R4 wrong labels", "R5 holes")))
"""The regimes by which the rule for defaults decides."""
FEWER = tuple((arm, samples) for arm in ("weights", "sampler", "sampler, when drawn") for samples in (2, 4))
"""Arms that the rule may choose with fewer samples than eight."""
DECAYS = (0.25, 0.5, 1.0)
"""Of old counts, beside the default of 0.8."""
BUDGETS = (
    ("R0 balanced", 512),
    ("R3 hopeless, right teacher", 512),
    ("R3 hopeless, right teacher", 2048),
    ("R3 hopeless, right teacher", 4096),
)
POINTS = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Cell:
    """A run.

    Attributes:
        experiment: E0 to E8.
        regime: Its name in ``REGIMES``.
        arm: Its name in ``ARMS``.
        changes: What differs from the regime.
        samples: K; ``None``: the arm's own.
        refresh, decay: Of pass rates, ``None`` likewise.
    """

    experiment: str
    regime: str
    arm: str
    seed: int
    family: str = "reverse"
    stages: str = "forward"
    steps: int = STEPS
    changes: Changes = ()
    samples: int | None = None
    refresh: str | None = None
    rate: float = 1e-3
    decay: float | None = None

    @property
    def length(self) -> int:
        """Steps that are trained. Arms without estimates go on: their curve says what its price would have bought.

        Not the controls, and not in two stages, where a longer run is another one.
        """
        arm = self.treatment()
        ends = arm.estimates or arm.another_seed or arm.smaller_batch or self.stages.startswith("two stages")
        return self.steps if ends else min(4 * self.steps, LAST)

    @property
    def where(self) -> tuple[Any, ...]:
        """What cells share that have the same world."""
        return self.regime, self.changes, self.family, self.seed

    def world(self) -> Regime:
        """The regime with its changes."""
        return replace(REGIMES[self.regime], **dict(self.changes))  # type: ignore[arg-type]

    def treatment(self) -> Arm:
        """The arm with its changes."""
        arm, rates = ARMS[self.arm], ARMS[self.arm].block["pass_rate"]
        if self.samples is not None:
            rates = rates | {"samples": self.samples}
        if self.refresh is not None:
            rates = rates | {"refresh": self.refresh} | ({"every_steps": 12} if self.refresh == "every" else {})
        if self.decay is not None:
            rates = rates | {"decay": self.decay}
        return dataclasses.replace(arm, block=arm.block | {"pass_rate": rates})

    def points(self) -> list[int]:
        """Steps after which accuracy is measured: the same in all arms, as far as they go."""
        return sorted(
            {round(share * self.steps) for share in POINTS} | {*range(self.steps, self.length + 1, self.steps)}
        )

    def columns(self) -> dict[str, Any]:
        """What a row says of it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "changes": named(self.changes)
        }


def named(changes: Changes) -> str:
    """Changes of a regime in words."""
    return ", ".join(f"{name}={value:g}" for name, value in changes)


def _grid(
    experiment: str, regimes: Sequence[str], arms: Sequence[str], seeds: Sequence[int], **more: Any
) -> Iterator[Cell]:
    for regime, seed, arm in itertools.product(regimes, seeds, arms):
        yield Cell(experiment, regime, arm, seed, **more)


def calibration() -> Iterator[Cell]:
    """E0: is every regime what it says; how far apart are two runs of the same arm; which learning rate."""
    yield from _grid("E0", tuple(REGIMES), ("uniform", "uniform again"), CALIBRATION)
    yield from _grid("E0", MAIN, ("sampler",), CALIBRATION)
    for rate in RATES:
        yield from _grid("E0", MAIN, ("uniform", "sampler"), CALIBRATION, rate=rate)


def the_map() -> Iterator[Cell]:
    """E1: every arm in every regime, forward KL."""
    for regime in MAP:
        # K samples of 4,096 prompts take longer than a run.
        yield from _grid("E1", (regime,), (*SHORT, *DRAWN) if regime == BELOW else COMPARED, SEEDS)


def doses() -> Iterator[Cell]:
    """E2: how many prompts are hopeless, and how often the teacher is right there."""
    for hopeless, right in itertools.product(HOPELESS, RIGHT):
        yield from _grid("E2", ("R3 hopeless, right teacher",), SWEPT, SEEDS[:10], changes=dose_of(hopeless, right))


def dose_of(hopeless: float, right: float) -> Changes:
    """So many prompts are hopeless, a fifth of the others is mastered, and the teacher is right at so many."""
    rest = 1 - hopeless
    return (("mastered", 0.2 * rest), ("frontier", 0.8 * rest), ("hopeless", hopeless), ("teacher", right))


def budgets() -> Iterator[Cell]:
    """E3: from a quarter of an epoch to many, with pass rates as they were and estimated again."""
    for regime, prompts in BUDGETS:
        yield from _grid("E3", (regime,), LONG, SEEDS[:10], steps=320, changes=(("prompts", prompts),))
    yield from _grid(
        "E3", ("R3 hopeless, right teacher",), ("sampler", "posterior sampler"), SEEDS[:10], steps=320, refresh="every"
    )
    yield from _grid("E3", LONGEST, SHORT, SEEDS[:10], steps=640)


def estimates() -> Iterator[Cell]:
    """E4: samples a prompt; old ones, new ones, those of training."""
    yield from _grid(
        "E4", MAIN, ("uniform",), SEEDS[:10]
    )  # E1's students are others, where another processor made them
    for samples in (1, 2, 4, 8, 16, 32):
        for arm in ("sampler", "posterior sampler", "posterior sampler, when drawn"):
            if (samples, arm) == (1, "sampler"):
                continue  # k of 1 is 0 or 1: nothing weighs
            yield from _grid("E4", MAIN, (arm,), SEEDS[:10], samples=samples)
    yield from _grid("E4", MAIN, ("sampler", "posterior sampler"), SEEDS[:10], refresh="every")
    yield from _grid("E4", MAIN, ("uniform", "free estimates", "sampler"), SEEDS[:10], stages="reverse")


def orders() -> Iterator[Cell]:
    """E5: reverse KL, two stages, and these the other way round."""
    for stages in ("reverse", "two stages", "two stages, reversed"):
        yield from _grid("E5", MAIN, SHORT, SEEDS, stages=stages)
        yield from _grid("E5", SECOND, SHORT, SEEDS, stages=stages)
    # With these the rule for defaults can be asked in two stages, too, which is what a user runs.
    yield from _grid("E5", [regime for regime in RULED if regime not in MAIN], SHORT, SEEDS, stages="two stages")
    yield from _grid("E5", MAIN, GATED, SEEDS, stages="reverse")
    yield from _grid("E5", MAIN, ZEROS, SEEDS, stages="two stages")


def families() -> Iterator[Cell]:
    """E6: another task."""
    yield from _grid("E6", (*MAIN, *SECOND), SHORT, SEEDS[:10], family="sums")


def candidates() -> Iterator[Cell]:
    """E7: what the rule may choose beside E1's arms, which have eight samples, all taken first; pass rates that are
    predicted; and how fast to forget what free estimates have counted."""
    yield from _grid("E7", RULED, ("uniform", "predicted"), SEEDS)
    for arm, samples in FEWER:
        yield from _grid("E7", RULED, (arm,), SEEDS, samples=samples)
    yield from _grid("E7", RULED, ("weights",), SEEDS, refresh="every")
    yield from _grid("E7", MAIN, ("uniform", "free estimates"), SEEDS[:10], stages="reverse")
    for decay in DECAYS:
        yield from _grid("E7", MAIN, ("free estimates",), SEEDS[:10], stages="reverse", decay=decay)


def rates() -> Iterator[Cell]:
    """E8: the sampler and uniform at the rate that does each of them best, which E0's seeds choose."""
    for rate in LOWER:
        yield from _grid("E8", MAIN, ("uniform", "sampler"), SEEDS, rate=rate)


EXPERIMENTS = {
    "E0": calibration,
    "E1": the_map,
    "E2": doses,
    "E3": budgets,
    "E4": estimates,
    "E5": orders,
    "E6": families,
    "E7": candidates,
    "E8": rates,
}


def programme(names: Sequence[str] = ()) -> list[Cell]:
    """All runs, two seeds at a time: whatever has been done until now is balanced over the arms, and two processes do
    not begin with the same models."""
    cells = [cell for name in names or EXPERIMENTS for cell in EXPERIMENTS[name]()]
    return sorted(cells, key=lambda cell: (cell.experiment, cell.seed // 2))


def by_world(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The same in groups that share a world, which takes longer to make than a run."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.where, []).append(cell)
    return list(groups.values())


def smoke() -> list[Cell]:
    """Two short runs of every part, in one world a family: that the machinery works."""
    found = []
    for name in EXPERIMENTS:
        first = next(EXPERIMENTS[name]())
        plain = replace(first, steps=8, seed=0, regime=MAP[3], changes=(), samples=None)
        found += [replace(plain, arm=arm) for arm in ("uniform", "sampler")]
    return found
