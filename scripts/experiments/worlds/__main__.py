"""Runs the policies that share tokens among capabilities in simulated worlds, writes the table and the page's numbers.

python -m scripts.experiments.worlds            # half an hour
python -m scripts.experiments.worlds --check    # the page shows what the committed table says
"""

from __future__ import annotations

from typing import Any

from paced_verl.statistics import estimate
from scripts.experiments.page import PAGES, command, lines
from scripts.experiments.worlds.study import study

MODULE = "scripts.experiments.worlds"
TABLE = PAGES / "worlds.parquet"
POLICIES = ("best schedule", "best fixed", "gains", "kl_headroom", "uniform", "read")


def blocks(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The page's table."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    table = [[name, *(_cell(rows, name, policy) for policy in POLICIES)] for name in worlds]
    return {"worlds": lines(["world", *POLICIES], table)}


def _cell(rows: list[dict[str, Any]], world: str, policy: str) -> str:
    gained = [row["gained"] for row in rows if (row["world"], row["policy"]) == (world, policy)]
    if len(gained) == 1:
        return f"{gained[0]:+.4f}"
    if not gained:
        return ""
    found = estimate(gained)
    text = f"{found.mean:+.4f} ± {(found.interval[1] - found.interval[0]) / 2:.4f}"
    return f"**{text}**" if found.interval[0] > 0 or found.interval[1] < 0 else text


if __name__ == "__main__":
    command(__doc__, MODULE, TABLE, blocks, study)
