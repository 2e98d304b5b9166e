"""What the page says, out of the study's table."""

from __future__ import annotations

from typing import Any

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
    differs = ", ".join(
        f"{draw - start:+.3f}"
        for draw, start in zip(of(table, "draw", "after"), of(table, "start", "after"), strict=True)
    )
    half = 1.96 * (2 * 0.25 / PROBLEMS) ** 0.5
    text = (
        f"`draw` spent {share:.0%} of the rollouts that `start` spent on pass rates. Its held-out accuracy after the "
        f"last step is that of `start` {differs} (a number a seed); over problems that is known to ± {half:.3f}."
    )
    return wrapped(text)
