"""Where a run's budget went: tokens by who read or wrote them, what was saved, and runs at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from paced_verl.report.run import Run

WHO = {
    "student": "student, rollouts",
    "estimate": "student, pass-rate estimates",
    "teacher": "teacher",
    "validation": "student, verl's validation",
    "alignment": "alignment, student and teachers",
}
WHAT = {"prompt": "read", "generated": "written"}
KINDS = {f"paced/tokens/{who}/{what}": (who, what) for who in WHO for what in WHAT}


def label(kind: str) -> str:
    """What a page calls one of ``KINDS``."""
    who, what = KINDS[kind]
    return f"{WHO[who]}: {WHAT[what]}"


def by_kind(run: Run) -> dict[str, float]:
    """Tokens of the whole run by kind; empty where the run did not count them."""
    sums = {kind: sum(run.series(kind).values()) for kind in KINDS if run.series(kind)}
    return sums or _teacher_only(run)


def _teacher_only(run: Run) -> dict[str, float]:
    """What runs counted before they told kinds apart."""
    counted = run.series("paced/teacher/tokens")
    return {"paced/teacher/tokens": sum(counted.values())} if counted else {}


@dataclass(frozen=True)
class Counter:
    """What stands for the tokens of a run.

    Attributes:
        label: Of an axis.
        names: Metrics that add up to it.
    """

    label: str
    names: tuple[str, ...]

    def cumulative(self, run: Run) -> dict[int, float]:
        """Tokens up to and including each step that was logged; 0 for the validation before training."""
        spent = [sum(values.get(name, 0.0) for name in self.names) for values in run.metrics.values()]
        return dict(zip(run.metrics, accumulate(spent), strict=True))


MEASURES = ("validation", "alignment")
ALL = Counter("tokens but for validation", tuple(kind for kind in KINDS if KINDS[kind][0] not in MEASURES))
"""What the method costs. Validation and alignment measure it, and are as often as one likes."""
TRAINED = Counter("tokens of the rows that trained", ("perf/total_num_tokens",))
"""Of verl's own: estimates and the teacher are not in it."""


def common_counter(runs: Sequence[Run]) -> Counter | None:
    """The fullest count that every run has kept; ``None`` if there is none."""
    for counter in (ALL, TRAINED):
        if all(any(run.series(name) for name in counter.names) for run in runs):
            return counter
    return None


def trained(run: Run) -> float:
    """Tokens of the rows that trained, prompts included, as verl counts them; 0 where it did not."""
    return sum(sum(run.series(name).values()) for name in TRAINED.names)


def shares(tokens: Mapping[str, float]) -> dict[str, float]:
    """Of all tokens, the share of each of ``WHO``; 0 where nothing was counted."""
    total = sum(tokens.values()) or 1.0
    return {who: sum(n for kind, n in tokens.items() if kind.startswith(f"paced/tokens/{who}/")) / total for who in WHO}


@dataclass(frozen=True)
class Saved:
    """What weights of 0 have saved.

    Attributes:
        rows: Rows that the teacher did not score.
        tokens: What it would have read for them.
        seconds: What that would have taken, by the step's own speed.
    """

    rows: float
    tokens: float
    seconds: float


def saved(run: Run) -> Saved:
    """Sums over the run."""
    names = ("skipped_rows", "tokens_saved", "seconds_saved")
    return Saved(*(sum(run.series(f"paced/teacher/{name}").values()) for name in names))


def seconds(run: Run) -> dict[str, float]:
    """Wall clock of the steps, and what of it were estimates, validation and checkpoints; where the run logged it."""
    names = {
        "steps": "timing_s/step",
        "of them estimating pass rates": "paced/pass_rate/seconds",
        "rollouts": "timing_s/gen",
        "updates": "timing_s/update_actor",
        "checkpoints": "timing_s/save_checkpoint",
        "validation": "timing_s/testing",
    }
    return {words: sum(found.values()) for words, name in names.items() if (found := run.series(name))}
