"""Settings that change what a run does, on verl's real trainer: each run covers several."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from paced_verl.targets.store import TargetStore
from tests.e2e.harness import Workplace


def test_stored_targets_a_hard_filter_and_a_learning_rate_of_the_stages_own(workplace: Workplace) -> None:
    """Responses come from the data: the teacher writes none, and prompts outside .2 ≤ p ≤ .8 do not train."""
    launched = workplace.launch(
        "paced.targets.column=extra_info.solution",
        "paced.schedule.1.lr_factor=0.1",
        "paced.pass_rate.from_training=False",
        "paced.pass_rate.at_end=True",
        group="hard_filter",
        steps=4,
    )
    assert launched.code == 0, launched.tail()
    assert "learning rate × 0.1" in launched.log
    run = workplace.run()
    assert sorted(run.pass_rates) == [0, 2, 4]
    assert list(run.series("actor/lr").values()) == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])

    for step, table in ((1, run.pass_rates[0]), (2, run.pass_rates[0]), (3, run.pass_rates[2]), (4, run.pass_rates[2])):
        rates = table.rates()[workplace.prompts_trained(step)]
        assert ((rates >= 0.2) & (rates <= 0.8)).all(), f"step {step}"

    # One row a prompt on teacher responses, n on the student's; no padding rows in either.
    rows = [len((workplace.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()) for step in (1, 2, 3, 4)]
    assert rows == [8, 8, 16, 16]

    # The stored responses are the data's, token for token.
    store = TargetStore()
    store.load(workplace.checkpoints / "global_step_4" / "paced" / "targets")
    data = pq.read_table(workplace.models / "data" / "train.parquet").to_pylist()
    trained = {prompt for step in (1, 2) for prompt in workplace.prompts_trained(step)}
    assert len(store) == len(trained)
    assert all(store[prompt].response == data[prompt]["extra_info"]["solution"] for prompt in trained)

    divergences = [run.series(f"paced/divergence/{name}") for name in ("value", "forward_kl", "reverse_kl")]
    value, forward, reverse = ([series[step] for step in (1, 2, 3, 4)] for series in divergences)
    assert value == pytest.approx(forward[:2] + reverse[2:], rel=1e-5), "each stage trains its own divergence"
    assert all(0 <= mass < 0.5 for mass in run.series("paced/divergence/tail_mass").values())


def test_targets_ahead_of_a_run_then_the_sampler_carries_the_weight(workplace: Workplace) -> None:
    """A context and a filter ahead; then posterior weights, power, exploration, task rewards, two ranks."""
    targets, context = workplace.folder / "targets.parquet", workplace.folder / "context.jinja"
    context.write_text("{{ problem }}")  # this teacher has not learned to read more
    settings = [
        f"paced.targets.file={targets}",
        "paced.targets.keep=correct",
        "paced.targets.attempts=2",
        "paced.targets.temperature=0.7",
        f"paced.teacher.context={context}",
    ]
    prepare = ["-m", "paced_verl.cli", "targets", "+paced=two_stage", *workplace.overrides(4), *settings]
    before = 0
    for _ in range(2):  # the second command asks again where the first one got nothing correct
        done = subprocess.run([sys.executable, *prepare], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        store = TargetStore()
        store.load(targets)
        stored = store.responses
        assert f"stored {stored}, new {stored - before}, skipped {64 - stored}" in done.stdout
        before = stored
    assert len(store) == 64
    assert all(bool(store[i].token_ids) == bool(store[i].correct) for i in range(64)), "kept if and only if correct"

    launched = workplace.launch(
        *settings,
        "paced.teacher.context=answer",
        "paced.weight.estimate=posterior",
        "paced.weight.teacher=product",
        "paced.sampler.power=1.0",
        "paced.sampler.explore=0.25",
        "distillation.distillation_loss.use_task_rewards=True",
        "distillation.distillation_loss.distillation_loss_coef=0.5",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        "trainer.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_gpus=3",
        steps=4,
    )
    assert launched.code == 0, launched.tail()
    run = workplace.run()
    assert set(run.series("actor/pg_loss")) == {3, 4}, "no policy gradient on teacher responses"
    skipped = [i for i in range(64) if not store[i].token_ids]
    zero = list(run.series("paced/weight/zero_share").values())
    assert zero == pytest.approx([len(skipped) / 64] * 4), (
        "a posterior weight is 0 only where the teacher never was right"
    )
    for step in (1, 2):
        expected = sum(prompt in skipped for prompt in workplace.prompts_trained(step))
        assert run.series("paced/targets/skipped")[step] >= expected
    assert np.isfinite(list(run.series("actor/grad_norm").values())).all()
