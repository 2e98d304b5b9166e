"""What the page says, out of the study's table."""

from __future__ import annotations

from typing import Any

from paced_verl.statistics import Estimate, estimate, paired
from scripts.experiments.page import lines, wrapped

Row = dict[str, Any]
PROBLEMS = 512
"""Held-out problems: the same in every run, one response to each."""


def blocks(table: list[Row]) -> dict[str, str]:
    """Text by the name of its place."""
    return {"runs": _runs(table), "result": _result(table)}


def of(table: list[Row], arm: str, column: str) -> list[float]:
    """A column of an arm, in the order of the seeds."""
    return [row[column] for row in sorted(table, key=lambda row: row["seed"]) if row["arm"] == arm]


def _runs(table: list[Row]) -> str:
    head = ["arm", "seed", "prompts measured", "rollouts for it", "seconds in all steps", "before", "after"]
    rows = [
        [
            row["arm"],
            str(row["seed"]),
            f"{row['prompts_measured']:,}",
            f"{row['estimate_rollouts']:,}",
            f"{row['seconds_in_steps']:.0f}",
            f"{row['before']:.3f}",
            f"{row['after']:.3f}",
        ]
        for row in table
    ]
    return lines(head, rows)


def _result(table: list[Row]) -> str:
    share = sum(of(table, "draw", "estimate_rollouts")) / sum(of(table, "start", "estimate_rollouts"))
    after = {arm: of(table, arm, "after") for arm in ("start", "draw")}
    means = ", ".join(f"{arm} {estimate(values).mean:.3f}" for arm, values in after.items())
    differs = _points(paired(after["draw"], after["start"]))
    text = (
        f"`draw` spent {share:.0%} of the rollouts that `start` spent on pass rates. Held-out accuracy "
        f"after the last step, means over {len(after['draw'])} seeds: {means}. Paired by seed, draw minus start: "
        f"{differs}. One run has a standard error of about {(0.25 / PROBLEMS) ** 0.5:.3f} over problems."
    )
    return wrapped(text)


def _points(found: Estimate) -> str:
    low, high = found.interval
    return f"{found.mean:+.3f} (95 %: {low:+.3f} to {high:+.3f})"
