"""Every kind of teacher on verl's real trainer; each run covers several settings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from paced_verl.alignment.nodes import FEATURES
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
    """A teacher in the trainer that takes the student's weights every 2 steps; no packing, fixed micro-batches. Correct
    responses train nothing, and of the others the half that a fitted predictor takes for aligned."""
    schedule = (
        "paced.schedule=[{until:1,divergence:jsd,parameters:{beta:0.3},responses:student},"
        "{until:2,divergence:akl,responses:student},"
        "{until:1.0,divergence:{from:forward_kl,to:reverse_kl,over:0.5},responses:student}]"
    )
    template = workplace.folder / "context.jinja"
    template.write_text(TEMPLATE)
    predictor = fitted_predictor(workplace.folder)
    launched = workplace.launch(
        "paced.weight.outcome={correct:0.0,wrong:0.5}",
        "paced.tokens.select=aligned",
        f"paced.tokens.file={predictor}",
        "paced.tokens.keep=0.5",
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

    run, tokenizer = workplace.run(), AutoTokenizer.from_pretrained(workplace.models / "student")
    failed = readable = 0
    for step in range(1, 6):
        rollouts = workplace.rollouts(step)
        wrong = [rollout for rollout in rollouts if rollout["score"] < 0.5]
        assert run.series("paced/teacher/skipped_rows")[step] == len(rollouts) - len(wrong)
        failed += len(wrong)
        if any("\ufffd" in rollout["output"] for rollout in wrong):
            continue  # bytes that are no character: how many is not in the text
        # The end of a response is not in its text; one that was cut off has none.
        lengths = [len(tokenizer.encode(rollout["output"])) for rollout in wrong]
        lengths = [length + (length < 32) for length in lengths]
        # A student that samples may write a text in other tokens than it is encoded in, now and then.
        assert run.series("paced/divergence/tokens")[step] == pytest.approx(sum(lengths), rel=0.05), (
            "of the wrong alone"
        )
        readable += 1
        kept = sum(-(-length // 2) for length in lengths) / sum(lengths)
        assert run.series("paced/divergence/kept")[step] == pytest.approx(kept, abs=0.02)
    assert 0 < failed < 5 * 16, "otherwise nothing is seen here"
    assert readable > 0


def fitted_predictor(folder: Path) -> Path:
    """What ``paced-verl align fit`` makes of a measurement, here of one with planted signs."""
    rng = np.random.default_rng(0)
    rows = [
        {"teacher": "t", "divergence": "reverse_kl", "question": i // 20, "position": i % 20}
        | dict.fromkeys(FEATURES, 0.0)
        | {"reverse_kl": kl, "dot": kl - 0.5 + 0.1 * rng.normal()}
        for i, kl in enumerate(rng.uniform(size=300))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    command = [sys.executable, "-m", "paced_verl.cli", "align", "fit", str(folder), "--out", f"{folder}/aligned.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "300 nodes of 15 questions" in done.stdout
    return folder / "aligned.json"


def test_the_students_own_servers_under_its_own_correct_rollout(workplace: Workplace) -> None:
    """Current weights as the teacher, groups that weigh themselves. The context goes by data source: a sibling's
    correct response, or the answer, which is always there."""
    data, (_, sources) = two_sources(workplace, every=4)
    launched = workplace.launch(
        f"data.train_files={data}",
        ONE_STAGE % "forward_kl",
        "paced.teacher.backend=student",
        "paced.teacher.context={data_source:{source_1:answer},others:rollout}",
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
    shown_a_rollout = [
        [rollout for rollout in workplace.rollouts(step) if sources[workplace.row_of(rollout["input"])] == "source_0"]
        for step in (1, 2, 3)
    ]
    alone = [without_a_correct_sibling(rollouts) for rollouts in shown_a_rollout]
    assert seen["paced/teacher/no_context"] == alone
    everyone = sum(without_a_correct_sibling(workplace.rollouts(step)) for step in (1, 2, 3))
    assert 0 < sum(alone) < everyone, "otherwise nothing is seen here"


def without_a_correct_sibling(rollouts: list[dict]) -> int:
    """Rows of which no other response to the same prompt is correct."""
    correct = Counter(rollout["input"] for rollout in rollouts if rollout["score"] >= 0.5)
    return sum(correct[rollout["input"]] - (rollout["score"] >= 0.5) == 0 for rollout in rollouts)


def test_two_teachers_each_with_its_own_context(workplace: Workplace) -> None:
    """Rows are routed by a column: seven of eight to a teacher that sees the answer, the others to one that knows
    nothing: it finds all tokens equally likely, so that its top-k hold k/V of the probability. What each teaches is a
    capability of its own. Where both point is measured after the last step."""
    data, (rows, _) = two_sources(workplace, every=8)
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
        "paced.capability={column:data_source,policy:task_static,probe:null,"
        "requirement:{source_0:0.875,source_1:0.125}}",
        "paced.alignment.every_steps=2",
        "paced.alignment.questions=4",
        "paced.alignment.rollouts=12",
        "paced.alignment.nodes=5",
        "paced.alignment.visits=8",
        "paced.alignment.budget.rollouts=400",
        steps=2,
    )
    seen = trains(launched, workplace, 2)
    is_aligned_after_step_2(workplace)

    run = workplace.run()
    assert {step: run.series("paced/capability/source_1/realised")[step] for step in (1, 2)} == {1: 0.125, 2: 0.125}
    apart = [run.series(f"paced/capability/{source}/reverse_kl")[2] for source in ("source_0", "source_1")]
    assert min(apart) > 0

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


def two_sources(workplace: Workplace, every: int) -> tuple[Path, tuple[pa.Table, list[str]]]:
    """The training data, one row of so many from source_1, the others from source_0: file, rows and sources."""
    data = workplace.folder / "two_sources.parquet"
    rows = pq.read_table(workplace.models / "data" / "train.parquet")
    sources = [f"source_{int(i % every == 0)}" for i in range(rows.num_rows)]
    index = rows.schema.get_field_index("data_source")
    pq.write_table(rows.set_column(index, "data_source", [sources]), data)
    return data, (rows, sources)


def is_aligned_after_step_2(workplace: Workplace) -> None:
    """It was measured then and not before, with the weights of the checkpoint, and each teacher by its own server."""
    run, folder = workplace.run(), workplace.checkpoints / "paced" / "alignment" / "step_2"
    numbers = json.loads((folder / "alignment.json").read_text())
    found = {(one["teacher"], one["divergence"]): one["aggregate"]["value"] for one in numbers["teachers"]}
    for teacher in ("a/none", "b/none"):
        logged = run.series(f"paced/alignment/{teacher}/forward_kl/cosine")
        assert logged == {2: found[teacher, "forward_kl"]}
    total = numbers["rollouts"]["free"] + numbers["rollouts"]["forced"]
    assert run.series("paced/alignment/rollouts") == {2: total}
    assert numbers["rollouts"]["free"] == 48
    generated = run.series("paced/tokens/alignment/generated")
    assert generated[1] == 0
    assert generated[2] > numbers["tokens"]["generated"], "one more for each response that is scored"

    tokens = pq.read_table(folder / "tokens.parquet").to_pylist()
    ignorant = [row["q"]["b/none"] for row in tokens]
    assert ignorant == pytest.approx([np.mean(ignorant)] * len(tokens), rel=1e-3)
    assert np.std([row["q"]["a/none"] for row in tokens]) > 0.05

    student = workplace.models / "student"
    tokenizer, before = AutoTokenizer.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student)
    shard = workplace.checkpoints / "global_step_2" / "actor" / "model_world_size_1_rank_0.pt"
    after, weights = AutoModelForCausalLM.from_pretrained(student), torch.load(shard, weights_only=False)
    after.load_state_dict({name: getattr(value, "_local_tensor", value) for name, value in weights.items()})
    data = pq.read_table(workplace.models / "data" / "train.parquet").to_pylist()
    errors: dict[str, list[float]] = {"before": [], "after": []}
    for row in tokens:
        prompt = data[numbers["questions"][row["question"]]["prompt"]]["prompt"]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        ids = torch.tensor([[*ids, *tokenizer.encode(row["before"], add_special_tokens=False)]])
        for name, model in (("before", before), ("after", after)):
            with torch.no_grad():
                said = model(ids).logits[0, -1, : len(tokenizer)].float().softmax(-1)[row["token"]]
            errors[name].append(abs(float(said) - row["p"]))
    assert max(errors["after"]) < 1e-3 < max(errors["before"])


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
