"""What a run meets: how hard its prompts are for this student, whether the teacher and the verifier are right there."""

from __future__ import annotations

from dataclasses import dataclass

SEEN = (3, 4, 5, 6)
"""Lengths that the student has learned before: what is longer is out of its reach at first."""
ALL = (3, 4, 5, 6, 7, 8)
MASTERED, FRONTIER, HOPELESS = 1.0, (4 / 16, 12 / 16), 1 / 16
"""Prompts are mastered from this pass rate on, by 16 samples; on the frontier within; hopeless up to the last one. What
lies between is left out, so that a prompt measured anew is mostly of the same class."""


@dataclass(frozen=True)
class Regime:
    """Attributes:
    mastered, frontier, hopeless: Shares of the prompts by the student's measured pass rate; their sum is 1.
    teacher: Share of the hopeless prompts at which the teacher is right, in its responses and its probabilities.
    wrong_labels: Share of the prompts whose verifier wants another answer.
    holes: Share of the prompts that nobody can answer.
    prompts: N.
    lengths: Of the held-out problems.
    second_skill: Whether the student knows another skill beforehand.
    """

    mastered: float
    frontier: float
    hopeless: float
    teacher: float = 1.0
    wrong_labels: float = 0.0
    holes: float = 0.0
    prompts: int = 512
    lengths: tuple[int, ...] = ALL
    second_skill: bool = False


REGIMES = {
    "R0 balanced": Regime(0.25, 0.5, 0.25),
    "R1 mastered": Regime(0.7, 0.25, 0.05, lengths=SEEN),
    "R2 hopeless, wrong teacher": Regime(0.1, 0.4, 0.5, teacher=0.0, lengths=SEEN),
    "R3 hopeless, right teacher": Regime(0.1, 0.4, 0.5),
    "R4 wrong labels": Regime(0.25, 0.5, 0.25, wrong_labels=0.5),
    "R5 holes": Regime(0.25, 0.5, 0.25, holes=0.5),
    "R6 below an epoch": Regime(0.1, 0.4, 0.5, prompts=4096),
    "R7 second skill, wrong teacher": Regime(0.1, 0.4, 0.5, teacher=0.0, lengths=SEEN, second_skill=True),
    "R7 second skill, right teacher": Regime(0.1, 0.4, 0.5, second_skill=True),
}
