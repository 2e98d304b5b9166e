"""verl's asynchronous trainers, reward RL beside distillation, LoRA and several turns."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path

import numpy as np

from paced_verl import fields
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler
from tests.e2e.conftest import ROOT
from tests.e2e.harness import Workplace
from tests.e2e.test_teachers import two_sources


def finite(workplace: Workplace) -> None:
    gradients = list(workplace.run().series("actor/grad_norm").values())
    assert gradients
    assert np.isfinite(gradients).all()


def test_rollouts_that_go_on_in_the_next_step(workplace: Workplace) -> None:
    """colocate_async, killed in its second stage and resumed: prompts that were on their way are not lost."""
    overrides = [
        "trainer.v1.trainer_mode=paced_colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches=1",
        "paced.targets.column=extra_info.solution",
        "paced.weight.kernel=uniform",  # the order of the prompts then follows from the seed alone
        "paced.pass_rate.refresh=draw",
    ]
    workplace.launch_and_kill(4, *overrides)
    launched = workplace.launch(*overrides, steps=6)
    assert launched.code == 0, launched.tail()
    finite(workplace)
    run = workplace.run()
    assert set(run.series("paced/stage").values()) == {1, 2}
    divergences = [run.series(f"paced/divergence/{name}") for name in ("value", "forward_kl", "reverse_kl")]
    assert all(value > 0 for series in divergences for value in series.values())

    # Six batches are trained and one is on its way: the first seven of the epoch.
    sampler = PassRateSampler(PassRateTable(64), Kernel("uniform"), power=0.0, explore=0.0, seed=0, epoch_size=64)
    trained = [prompt for step in range(1, 7) for prompt in workplace.prompts_trained(step)]
    assert len(set(trained)) == len(trained) == 48
    drawn = set(islice(sampler, 56))
    assert set(trained) | queued(workplace.checkpoints / "global_step_6") == drawn
    measured = PassRateTable.load(workplace.checkpoints / "global_step_6" / "paced" / "pass_rates.parquet")
    assert drawn <= set(np.flatnonzero(measured.last_seen >= 0).tolist()), "before it was drawn"


def queued(checkpoint: Path) -> set[int]:
    """The prompts that verl saves with a checkpoint: on their way, and those of the step itself."""
    (storage,) = (checkpoint / "transfer_queue" / "simple_storage").glob("*.pkl")
    return {int(prompt) for prompt in pickle.loads(storage.read_bytes())["field_data"][fields.PROMPT].values()}


def test_rollouts_on_gpus_of_their_own(workplace: Workplace) -> None:
    """separate_async with two updates between two syncs of the weights."""
    overrides = [
        "trainer.v1.trainer_mode=paced_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "paced.targets.column=extra_info.solution",
        "paced.pass_rate.refresh=draw",
        "paced.weight.teacher=min",
        "paced.sampler.skip_zero_weight=False",
    ]
    launched = workplace.launch(*overrides, machine="cpu_separate", steps=4)
    assert launched.code == 0, launched.tail()
    finite(workplace)
    run = workplace.run()
    assert set(run.series("paced/stage").values()) == {1, 2}
    assert set(run.series("paced/teacher/pass_rate").values()) == {1}, "the data's own responses are right"
    measured = run.pass_rates[max(run.pass_rates)]
    trained = {prompt for step in range(1, 5) for prompt in workplace.prompts_trained(step)}
    assert trained <= set(np.flatnonzero(measured.last_seen >= 0).tolist())


def test_beside_grpo_routed_by_pass_rate(workplace: Workplace) -> None:
    """Task reward on every row, a coefficient that fades, KL to the reference; hopeless prompts teach themselves. Two
    capabilities share the draws."""
    mastered, hopeless = 0.7, 0.4
    data, (_, sources) = two_sources(workplace, every=2)
    launched = workplace.launch(
        f"data.train_files={data}",
        "paced.capability={column:data_source,policy:fixed,mix:{source_0:0.75,source_1:0.25},probe:null}",
        "paced.schedule=[{until:1.0,divergence:reverse_kl,responses:student,coef:{from:1.0,to:0.1}}]",
        f"paced.route={{mastered:{mastered},hopeless:{hopeless},context:answer}}",
        "paced.weight.fit=moments",
        "paced.pass_rate.from_training=False",  # rows are routed by the first estimate throughout
        "distillation.distillation_loss.use_task_rewards=True",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_coef=0.01",
        "actor_rollout_ref.actor.entropy_coeff=0.001",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "algorithm.rollout_correction.rollout_is=token",
        "actor_rollout_ref.rollout.n=4",
        steps=3,
    )
    assert launched.code == 0, launched.tail()
    finite(workplace)
    run = workplace.run()
    assert len(run.series("actor/kl_loss")) == 3
    assert set(run.series("actor/pg_loss")) == {1, 2, 3}

    rates = run.pass_rates[0].rates()
    assert (rates >= mastered).any()
    assert (rates <= hopeless).any(), "otherwise nothing is seen here"
    for step in (1, 2, 3):
        assert sum(sources[prompt] == "source_1" for prompt in workplace.prompts_trained(step)) == 2, "of eight"
        drawn = rates[workplace.prompts_trained(step)]
        assert run.series("paced/route/self_taught")[step] == 4 * (drawn <= hopeless).sum()
        assert run.series("paced/route/no_task")[step] == 4 * ((drawn <= hopeless) | (drawn >= mastered)).sum()
        assert run.series("paced/teacher/skipped_rows")[step] >= 4 * (drawn >= mastered).sum()


def test_groups_that_dapo_drops_cost_no_teacher(workplace: Workplace) -> None:
    """Their rollouts are counted all the same."""
    launched = workplace.launch(
        "paced.schedule=[{until:1.0,divergence:forward_kl_topk,responses:student}]",
        "distillation.distillation_loss.use_task_rewards=True",
        "algorithm.filter_groups.enable=True",
        "algorithm.filter_groups.metric=acc",
        "paced.weight.kernel=uniform",
        "actor_rollout_ref.rollout.n=4",
        "paced.pass_rate.refresh=start",
        "paced.pass_rate.decay=0.5",
        steps=2,
    )
    assert launched.code == 0, launched.tail()
    finite(workplace)
    run = workplace.run()
    dropped = run.series("training/filter_groups/evicted_samples")
    assert sum(dropped.values()) > 0, "otherwise nothing is seen here"
    assert set(run.series("paced/teacher/tokens_dropped").values()) == {0}
    assert min(run.series("paced/teacher/tokens").values()) > 0
    assert set(run.series("paced/teacher/tokens_saved").values()) == {0}, "what trains was scored, all of it"

    table = PassRateTable.load(workplace.checkpoints / "global_step_2" / "paced" / "pass_rates.parquet", 64)
    trained = {prompt for step in (1, 2) for prompt in workplace.prompts_trained(step)}
    counted = set(np.flatnonzero(table.samples != run.pass_rates[0].samples).tolist())
    assert trained < counted, "four more responses, half of the older ones"


def test_lora_and_several_turns(workplace: Workplace, tmp_path: Path) -> None:
    """An adapter on the student; tool tokens inside the response train nothing. Pass rates come from a file."""
    table = PassRateTable(64)
    table.observe(np.arange(64), np.full(64, 2), np.full(64, 4), step=0)
    table.save(tmp_path / "table.parquet")
    loops = tmp_path / "loops.yaml"
    loops.write_text("- name: two_turns\n  _target_: tests.e2e.two_turns.TwoTurns\n")
    launched = workplace.launch(
        "paced.schedule=[{until:1.0,divergence:reverse_kl,responses:student}]",
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora_alpha=8",
        "actor_rollout_ref.model.lora.merge=True",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
        "data.max_response_length=48",
        f"paced.pass_rate.file={tmp_path}/table.parquet",
        "paced.pass_rate.refresh=start",
        "paced.sampler.skip_zero_weight=False",
        environment={"PYTHONPATH": str(ROOT)},
        steps=2,
    )
    assert launched.code == 0, launched.tail()
    finite(workplace)
    run = workplace.run()
    trained, responses = run.series("paced/divergence/tokens")[1], run.series("response_length/mean")[1]
    assert 0 < trained < responses * 16, "the tool's tokens are part of the responses and do not train"
