"""Pass rates of what is about to be drawn: measured beside the rollouts of the step before, window by window."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import Window
from paced_verl.pacing.window import WindowSampler
from paced_verl.report.run import Run
from tests.e2e import server_counters
from tests.e2e.conftest import ROOT
from tests.e2e.harness import Workplace
from tests.e2e.test_resume import find_state

BATCH, PROMPTS, K, STEPS = 8, 64, 4, 5


def test_a_run_killed_in_a_window_goes_on_and_measures_nothing_twice(workplace: Workplace) -> None:
    """Power 1; three steps on teacher responses, two on the student's; killed after steps 1 and 3.

    And what each attempt says it spent on tokens is what the servers have counted themselves.
    """
    overrides = [
        "paced.pass_rate.refresh=draw",
        "paced.pass_rate.from_training=False",  # so that the table holds what was measured and nothing else
        "paced.sampler.power=1.0",
        "paced.weight.estimate=posterior",
        "paced.pass_rate.at_end=True",
        "actor_rollout_ref.rollout.disable_log_stats=False",
        "distillation.teacher_models.teacher_model.inference.disable_log_stats=False",
    ]
    counters = [workplace.folder / f"counters-{attempt}.jsonl" for attempt in range(3)]
    for step, file in zip((1, 3), counters, strict=False):
        workplace.launch_and_kill(step, *overrides, steps=STEPS, environment=noting(file))
        assert workplace.last_checkpoint() == step
    ended = workplace.launch(*overrides, steps=STEPS, environment=noting(counters[-1]))
    assert ended.code == 0, ended.tail()
    assert "pass rates of what is drawn first" not in ended.log
    run = workplace.run()
    assert list(run.series("paced/stage").values()) == [1, 1, 1, 2, 2]

    # Two batches before the first draw, then one beside each step, and none beside the last.
    measured = {1: 3 * BATCH, 2: BATCH, 3: BATCH, 4: BATCH, 5: PROMPTS}  # all of them at the end
    assert run.series("paced/pass_rate/measured") == measured
    tables = {
        step: PassRateTable.load(workplace.checkpoints / f"global_step_{step}" / "paced" / "pass_rates.parquet")
        for step in range(1, STEPS + 1)
    }
    for step, table in tables.items():
        assert sorted(set(table.samples.tolist())) == [0, K], "each prompt once, whatever was killed"
        assert np.count_nonzero(table.samples) == min(2 + step, STEPS + 1) * BATCH
    assert sorted(run.pass_rates) == list(range(1, STEPS + 1)), "kept for the report at every checkpoint"

    # Every step trains what the saved sampler draws from the saved table.
    for step in range(2, STEPS + 1):
        checkpoint = workplace.checkpoints / f"global_step_{step - 1}"
        state = find_state(torch.load(checkpoint / "data.pt", weights_only=False))
        kernel = Kernel(**{**state["kernel"], "prior": tuple(state["kernel"]["prior"])})
        sampler = WindowSampler(tables[step - 1], kernel, Window(BATCH), power=1.0, epoch_size=PROMPTS)
        sampler.load_state_dict(state)
        assert workplace.prompts_trained(step) == sorted(set(sampler.draw(BATCH).tolist())), f"step {step}"

    for attempt, file in enumerate(counters):
        spent = Run.load([workplace.folder / f"metrics-{attempt}.jsonl"], workplace.checkpoints)
        *_, last = (json.loads(line) for line in file.read_text().splitlines())
        for who, kinds in (("Student", ("student", "estimate", "validation")), ("Teacher", ("teacher",))):
            for part in ("prompt", "generated"):
                said = sum(sum(spent.series(f"paced/tokens/{kind}/{part}").values()) for kind in kinds)
                seen = sum(counted[part] for name, counted in last["counters"].items() if name.startswith(who))
                assert said == seen > 0, f"attempt {attempt}: {who} {part}"


def noting(file: Path) -> dict[str, str]:
    return {
        "VERL_USE_EXTERNAL_MODULES": "tests.e2e.server_counters",
        "PYTHONPATH": str(ROOT),
        server_counters.FILE: str(file),
    }
