"""What a run has spent on tokens, by who read and wrote them and what for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["student", "estimate", "validation", "teacher", "alignment"]
"""``student``: rollouts that train, and those that are dropped; ``estimate``: that measure pass rates; ``validation``:
verl's own; ``teacher``: what a teacher scores and writes, whoever it is; ``alignment``: what student and teachers read
and write where it is measured whereto a loss points."""
KINDS: tuple[Kind, ...] = ("student", "estimate", "validation", "teacher", "alignment")


@dataclass
class Tokens:
    """Sums by ``kind/part``: tokens read (``prompt``) and written (``generated``) apart."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: Kind, prompt: int, generated: int) -> None:
        """Count a request: tokens that were read for it, and that came back."""
        self.counts[f"{kind}/prompt"] += prompt
        self.counts[f"{kind}/generated"] += generated

    def update(self, other: Tokens) -> None:
        """Add another's sums."""
        self.counts.update(other.counts)

    def metrics(self) -> dict[str, float]:
        """By the metrics' names, each kind, also where it is 0."""
        parts = [f"{kind}/{part}" for kind in KINDS for part in ("prompt", "generated")]
        return {f"paced/tokens/{part}": float(self.counts[part]) for part in parts}
