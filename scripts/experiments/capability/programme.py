"""Which runs there are: interventions and full runs to calibrate by, and what is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.experiments.capability.distil import DECISIONS, FEW, MANY, Distillation, Plan
from scripts.experiments.capability.problems import NAMES, REQUIREMENT
from scripts.experiments.capability.reading import CHEAP, Reading

CALIBRATION, SEEDS = range(3), range(100, 120)
"""Everything that is chosen is chosen on the first ones, which are not reported."""
POLICIES = ("task_static", "uniform", "one_hot", "kl_headroom", "gains", "greedy", "read")
SHORT = 4
"""Decisions of an intervention."""
EVEN = {name: 1 / len(NAMES) for name in NAMES}
INTERVENTIONS: dict[str, Mapping[str, float]] = {name: {name: 1.0} for name in NAMES} | {
    "even": EVEN,
    "static": REQUIREMENT,
}
KEPT = 0.02
"""Least share, of policies as of mixes."""
BY_HEADROOM = {"sort": 0.416, "reverse": 0.398, "peak": 0.126, "copy": KEPT, "deep": KEPT, "shift": KEPT}
"""The best fixed mix by the interventions, as ``headroom.found`` gives it."""
WITHOUT_DEEP = {
    name: KEPT if name == "deep" else r * (1 - KEPT) / (1 - REQUIREMENT["deep"]) for name, r in REQUIREMENT.items()
}
"""The requirement, but for what is out of reach: what a look at the first probes tells anyone."""
MIXES = {"by headroom": BY_HEADROOM, "without deep": WITHOUT_DEEP}
"""Fixed mixes beside the policies, set before any reported run."""
PROBES = {"more probes": MANY, "probes read": CHEAP}
"""Of phases that have others than the rest."""
BY_PROBES = ("gains", "read")
"""Who is run with them."""


@dataclass(frozen=True)
class Cell:
    """A run.

    Attributes:
        phase: One of ``PHASES``.
        arm: An intervention, a policy, or one of ``MIXES``.
        seed: Of the student, the problems and everything that is drawn.
    """

    phase: str
    arm: str
    seed: int
    decisions: int = DECISIONS

    def plan(self) -> Plan:
        """What it does."""
        if self.phase == "interventions":
            return Plan("fixed", INTERVENTIONS[self.arm], self.decisions, floor=0.0)
        if self.arm in MIXES:
            return Plan("fixed", MIXES[self.arm], self.decisions)
        return Plan(self.arm, decisions=self.decisions, probe=PROBES.get(self.phase, FEW))

    @property
    def kind(self) -> type[Distillation]:
        """Who does it."""
        return Reading if self.phase == "probes read" else Distillation

    def columns(self) -> dict[str, Any]:
        """What a row says of it."""
        return vars(self).copy()


def interventions() -> Iterator[Cell]:
    """A: what a few decisions on a capability alone, or on a mix, do to all scores."""
    for seed in CALIBRATION:
        yield from (Cell("interventions", arm, seed, SHORT) for arm in INTERVENTIONS)


def calibration() -> Iterator[Cell]:
    """Whether the best mix by the interventions is better in full runs."""
    for seed in CALIBRATION:
        yield from (Cell("calibration", arm, seed) for arm in ("task_static", *MIXES))


def policies() -> Iterator[Cell]:
    """B: what is reported."""
    for seed in SEEDS:
        yield from (Cell("policies", arm, seed) for arm in (*POLICIES, *MIXES))


def other_probes(phase: str) -> Iterator[Cell]:
    """C, D: policies that decide by probes, with ten times as many, or with the usual ones, of which most are read."""
    for seed in SEEDS:
        yield from (Cell(phase, arm, seed) for arm in BY_PROBES)


PHASES = {
    "interventions": interventions,
    "calibration": calibration,
    "policies": policies,
    **{phase: partial(other_probes, phase) for phase in PROBES},
}


def programme(phases: Sequence[str] = ()) -> list[Cell]:
    """The runs of these phases, by default of all, seed by seed."""
    return [cell for phase in phases or PHASES for cell in PHASES[phase]()]


def smoke() -> list[Cell]:
    """Three short runs in one world: that the machinery works."""
    return [Cell("policies", arm, 0, 2) for arm in ("task_static", "gains", "kl_headroom")]
