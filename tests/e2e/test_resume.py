"""Promise 6: a run killed in each stage with SIGKILL goes on with the table, order, stage and targets it had saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paced_verl.pacing.kernel import Kernel, fit_prior
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.targets.store import TargetStore
from tests.e2e.harness import Workplace

BATCH, PROMPTS = 8, 64


def expected_prompts(table: PassRateTable, checkpoint: Path) -> list[int]:
    """The next batch of an undisturbed run: the saved sampler over the table that the step starts from."""
    state = find_state(torch.load(checkpoint / "data.pt", weights_only=False))
    kernel = Kernel(**{**state["kernel"], "prior": tuple(state["kernel"]["prior"])})
    sampler = PassRateSampler(table, kernel, epoch_size=PROMPTS)
    sampler.load_state_dict(state)
    return sorted(sampler.draw(BATCH).tolist())


def find_state(state: object) -> dict:
    """The sampler's state inside verl's dataloader state."""
    if isinstance(state, dict):
        if {"epoch", "position", "seed"} <= state.keys():
            return state
        for value in state.values():
            found = find_state(value)
            if found:
                return found
    return {}


def test_a_run_killed_in_each_stage_goes_on_as_if_undisturbed(workplace: Workplace) -> None:
    """Six steps, three a stage, teacher responses written in the run; killed after steps 2, 3 and 5.

    Step 3 ends a stage: the run resumes where pass rates are due and the prior of the weights is fitted again.
    """
    posterior = "paced.weight.estimate=posterior"
    workplace.launch_and_kill(2, posterior)
    assert workplace.last_checkpoint() == 2
    first = workplace.checkpoints / "global_step_2" / "paced"
    saved_targets, saved_table = TargetStore(), PassRateTable.load(first / "pass_rates.parquet")
    saved_targets.load(first / "targets")
    assert len(saved_targets) == 2 * BATCH, "one response a prompt, written in the run"

    killed = workplace.launch_and_kill(3, posterior)
    assert "Resuming from" in killed.log
    assert "stage 1 (steps 1–3): forward_kl on teacher responses" in killed.log
    workplace.launch_and_kill(5, posterior)
    assert workplace.last_checkpoint() == 5

    ended = workplace.launch(posterior)
    assert ended.code == 0, ended.tail()
    assert "stage 2 (steps 4–6): reverse_kl on student responses" in ended.log
    assert "stage 1" not in ended.log.split("Resuming from")[1]
    run = workplace.run()
    assert list(run.series("paced/stage").values()) == [1, 1, 1, 2, 2, 2]

    # Pass rates were estimated before steps 1 and 4, and not again by a resumed run in the middle of a stage.
    assert sorted(run.pass_rates) == [0, 3]
    assert "pass rates before step" not in ended.log
    assert sorted(step for step in run.series("paced/pass_rate/seconds")) == [1, 4]

    # Stage 1 does not learn from teacher responses: the table of step 2 is the one of the start.
    np.testing.assert_array_equal(saved_table.successes, run.pass_rates[0].successes)

    # Every step trains the prompts that the saved sampler gives for the saved table.
    tables = {1: run.pass_rates[0], 4: run.pass_rates[3]}
    for step in range(2, 7):
        checkpoint = workplace.checkpoints / f"global_step_{step - 1}"
        table = tables.get(step, PassRateTable.load(checkpoint / "paced" / "pass_rates.parquet"))
        assert workplace.prompts_trained(step) == expected_prompts(table, checkpoint), f"step {step}"
    epoch = [prompt for step in range(1, 7) for prompt in workplace.prompts_trained(step)]
    assert len(epoch) == len(set(epoch)) == 6 * BATCH, "no prompt is lost or trained twice in an epoch"

    # The prior is the one fitted to the last estimate.
    for step, table in ((2, run.pass_rates[0]), (4, run.pass_rates[3])):
        state = torch.load(workplace.checkpoints / f"global_step_{step}" / "data.pt", weights_only=False)
        assert find_state(state)["kernel"]["prior"] == pytest.approx(fit_prior(table.successes, table.samples))

    # Stored responses are the same ones to the end.
    last = TargetStore()
    last.load(workplace.checkpoints / "global_step_6" / "paced" / "targets")
    assert len(last) == 3 * BATCH
    for prompt in workplace.prompts_trained(1) + workplace.prompts_trained(2):
        assert last[prompt] == saved_targets[prompt]

    # The table learns from the rollouts of stage 2: two more samples for each prompt that trained, once, and decay.
    after = PassRateTable.load(workplace.checkpoints / "global_step_6" / "paced" / "pass_rates.parquet")
    trained = [prompt for step in (4, 5, 6) for prompt in workplace.prompts_trained(step)]
    expected = run.pass_rates[3].samples.copy()
    expected[trained] = expected[trained] * 0.8 + 2
    np.testing.assert_allclose(after.samples, expected, rtol=1e-6)
    assert (after.last_seen[trained] >= 4).all()
