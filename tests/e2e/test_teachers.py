"""Every kind of teacher on verl's real trainer; each run covers several settings."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from paced_verl.teacher.context import TeacherContext
from tests.e2e.harness import Launched, Workplace

ONE_STAGE = "paced.schedule=[{until:1.0,divergence:%s,responses:student}]"
TEMPLATE = "{{ problem }} The answer is {{ answer }}.\n{{ problem }}"


def trains(launched: Launched, workplace: Workplace, steps: int) -> dict[str, list[float]]:
    """The run ended well and every step moved the student; some of its metrics."""
    assert launched.code == 0, launched.tail()
    run = workplace.run()
    gradients = [run.series("actor/grad_norm")[step] for step in range(1, steps + 1)]
    assert np.isfinite(gradients).all()
    assert max(gradients) > 0
    names = ("paced/divergence/value", "paced/divergence/tail_mass", "paced/teacher/tokens", "paced/teacher/no_context")
    return {name: [run.series(name)[step] for step in range(1, steps + 1)] for name in names}


def test_a_moving_average_of_the_student_in_the_trainer_on_two_ranks_goes_on_after_a_kill(workplace: Workplace) -> None:
    """Self-distillation without a pool, a teacher being named: weights under the solution follow the student; TIP."""
    overrides = [
        "paced.teacher.model=student",
        ONE_STAGE % "reverse_kl",
        "paced.teacher.backend=reference",
        "paced.teacher.context=solution",
        "paced.teacher.update=ema",
        "paced.teacher.ema_decay=0.5",
        "paced.tokens.select=tip",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "trainer.n_gpus_per_node=2",
    ]
    workplace.launch_and_kill(2, *overrides)
    saved = sorted(path.name for path in (workplace.checkpoints / "global_step_2" / "paced" / "teacher").iterdir())
    assert saved == ["rank_0_of_2.pt", "rank_1_of_2.pt"]
    launched = workplace.launch(*overrides, steps=4)
    seen = trains(launched, workplace, 4)
    assert min(seen["paced/divergence/value"]) > 0, "the solution says something"
    assert min(seen["paced/teacher/tokens"]) > 0


def test_the_whole_vocabulary_with_divergences_of_every_kind(workplace: Workplace) -> None:
    """A teacher in the trainer that takes the student's weights every 2 steps; no packing, fixed micro-batches."""
    schedule = (
        "paced.schedule=[{until:1,divergence:jsd,parameters:{beta:0.3},responses:student},"
        "{until:2,divergence:akl,responses:student},"
        "{until:1.0,divergence:{from:forward_kl,to:reverse_kl,over:0.5},responses:student}]"
    )
    template = workplace.folder / "context.jinja"
    template.write_text(TEMPLATE)
    launched = workplace.launch(
        f"distillation.teacher_models.teacher_model.model_path={workplace.models}/student",
        schedule,
        "paced.teacher.backend=reference",
        "paced.teacher.topk=full",
        f"paced.teacher.context={template}",
        "paced.teacher.update=every",
        "paced.teacher.every_steps=2",
        "paced.weight.kernel=uniform",
        "paced.pass_rate.refresh=every",
        "paced.pass_rate.every_steps=3",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.actor.use_dynamic_bsz=False",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=False",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.actor.loss_agg_mode=token-sum",
        # On a CPU parameters stay where they are; that they are asked for before they are used is what this runs.
        "actor_rollout_ref.actor.fsdp_config.param_offload=True",
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload=True",
        group="uniform",
        steps=5,
    )
    seen = trains(launched, workplace, 5)
    assert max(seen["paced/divergence/tail_mass"]) == 0, "nothing lies outside the whole vocabulary"
    assert sorted(workplace.run().pass_rates) == [0, 3]
    assert launched.log.count("the teacher takes the student's weights") >= 2


def test_the_students_own_servers_under_its_own_correct_rollout(workplace: Workplace) -> None:
    """Current weights as the teacher, a sibling's correct response as the context, groups that weigh themselves."""
    launched = workplace.launch(
        ONE_STAGE % "forward_kl",
        "paced.teacher.backend=student",
        "paced.teacher.context=rollout",
        "paced.teacher.topk=24",
        "paced.weight.source=group",
        "paced.pass_rate.refresh=never",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
        steps=3,
    )
    seen = trains(launched, workplace, 3)
    run = workplace.run()
    rows = [run.series("paced/teacher/skipped_rows")[step] for step in (1, 2, 3)]
    saved = [run.series("paced/teacher/tokens_saved")[step] for step in (1, 2, 3)]
    assert all((tokens > 0) == (skipped > 0) for tokens, skipped in zip(saved, rows, strict=True))
    assert sum(seen["paced/teacher/tokens"]) > 0
    alone = [without_a_correct_sibling(workplace.rollouts(step)) for step in (1, 2, 3)]
    assert seen["paced/teacher/no_context"] == alone
    assert 0 < sum(alone) < 3 * 32, "otherwise nothing is seen here"


def without_a_correct_sibling(rollouts: list[dict]) -> int:
    """Rows of which no other response to the same prompt is correct."""
    correct = Counter(rollout["input"] for rollout in rollouts if rollout["score"] >= 0.5)
    return sum(correct[rollout["input"]] - (rollout["score"] >= 0.5) == 0 for rollout in rollouts)


def test_two_teachers_each_with_its_own_context(workplace: Workplace) -> None:
    """Rows are routed by a column: seven of eight to a teacher that sees the answer, the others to one that knows
    nothing: it finds all tokens equally likely, so that its top-k hold k/V of the probability."""
    data = workplace.folder / "two_sources.parquet"
    rows = pq.read_table(workplace.models / "data" / "train.parquet")
    sources = [f"source_{int(i % 8 == 0)}" for i in range(rows.num_rows)]
    index = rows.schema.get_field_index("data_source")
    pq.write_table(rows.set_column(index, "data_source", [sources]), data)
    ignorant = ignorant_teacher(workplace.models / "teacher", workplace.folder / "ignorant")
    launched = workplace.launch(
        f"data.train_files={data}",
        "data.train_batch_size=64",  # every prompt in every step
        "actor_rollout_ref.actor.ppo_mini_batch_size=64",
        "~distillation.teacher_models.teacher_model.model_path",
        "+distillation.teacher_models.teacher_model.model_path=null",
        *teacher("a", "source_0", workplace.models / "teacher"),
        *teacher("b", "source_1", ignorant),
        "distillation.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_gpus=3",
        ONE_STAGE % "forward_kl",
        "paced.teacher.context={source_0:answer,source_1:none}",
        "paced.weight.kernel=uniform",
        "paced.pass_rate.refresh=start",
        steps=2,
    )
    seen = trains(launched, workplace, 2)

    tokenizer = AutoTokenizer.from_pretrained(workplace.models / "student")
    problems = {row["prompt"][-1]["content"]: row for row in rows.to_pylist()}
    outside = 1 - 64 / AutoConfig.from_pretrained(ignorant).vocab_size
    for step in (1, 2):
        read, trained, by_ignorant = 0, 0, 0
        for rollout in workplace.rollouts(step):
            (row,) = (row for text, row in problems.items() if rollout["input"].endswith(text))
            place = rows["prompt"].to_pylist().index(row["prompt"])
            context = TeacherContext("none" if place % 8 == 0 else "answer", "solution")
            shown = context.messages({**row, "raw_prompt": row["prompt"]})
            response = len(tokenizer.encode(rollout["output"])) + 1  # its end is not in the text
            read += response + len(tokenizer.apply_chat_template(shown, add_generation_prompt=True)["input_ids"])
            trained += response
            by_ignorant += response if place % 8 == 0 else 0
        assert seen["paced/teacher/tokens"][step - 1] == pytest.approx(read, rel=0.02), "each saw its own context"
        tail = seen["paced/divergence/tail_mass"][step - 1]
        assert tail == pytest.approx(outside * by_ignorant / trained, abs=0.05), "each scored its own rows"


def ignorant_teacher(teacher: Path, folder: Path) -> Path:
    """The teacher with logits of 0."""
    shutil.copytree(teacher, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    model.save_pretrained(folder)
    return folder


def teacher(name: str, key: str, path: Path) -> list[str]:
    """Overrides that add a teacher as the machine's own one is set up."""
    entry = f"distillation.teacher_models.{name}"
    copied = "${distillation.teacher_models.teacher_model.inference}"
    return [
        f"+{entry}._target_=verl.workers.config.DistillationTeacherModelConfig",
        f"+{entry}.key={key}",
        f"+{entry}.model_path={path}",
        f"+{entry}.num_replicas=1",
        f"+{entry}.inference={copied}",
    ]
