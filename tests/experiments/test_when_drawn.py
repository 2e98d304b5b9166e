"""The page of the study of pass rates before the run and when they are drawn."""

from __future__ import annotations

import pytest

from paced_verl.report.run import Run
from scripts.experiments.page import put
from scripts.experiments.when_drawn.page import blocks, of
from scripts.experiments.when_drawn.study import STEPS, row


def test_a_row_is_what_the_run_logged() -> None:
    name = "val-core/words/acc/mean@1"
    metrics = {step: {"timing_s/step": 2.0, "paced/pass_rate/measured": 32.0} for step in range(1, STEPS + 1)}
    run = Run({0: {name: 0.25}} | metrics | {STEPS: metrics[STEPS] | {name: 0.5}}, {})
    found = row(run, "draw", 1)
    assert (found["prompts_measured"], found["estimate_rollouts"]) == (32 * STEPS, 4 * 32 * STEPS)
    assert (found["before"], found["after"], found["seconds_in_steps"]) == (0.25, 0.5, 2.0 * STEPS)


def test_the_page_pairs_runs_by_seed_whatever_their_order() -> None:
    table = [
        {"arm": arm, "seed": seed, "prompts_measured": n, "estimate_rollouts": 4 * n, "seconds_in_steps": 1.0}
        | {"before": 0.2, "after": 0.3 + seed / 10 + (arm == "draw") * 0.05}
        for arm, n in (("draw", 100), ("start", 400))
        for seed in (1, 0)
    ]
    assert of(table, "draw", "after") == pytest.approx([0.35, 0.45])
    text = blocks(table)["result"]
    assert "25%" in text
    assert "`start` +0.050, +0.050 (a number a seed)" in " ".join(text.split())
    with pytest.raises(ValueError, match="markers"):
        put("a page without markers", blocks(table), "scripts.experiments.when_drawn")
