"""``paced-verl diagnose snr`` with real models, its workers in this process; Ray's are in tests/e2e."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from paced_verl import cli
from paced_verl.checks import check
from paced_verl.config import PacedConfig, StageConfig
from paced_verl.diagnostics.snr import bins_of
from paced_verl.errors import PacedError
from paced_verl.gradients import measure
from paced_verl.gradients.inputs import Inputs, Options, choose, objective_of, resolve
from paced_verl.gradients.parts import Parts
from paced_verl.gradients.problem import Problem
from paced_verl.gradients.result import evaluate, gram
from paced_verl.gradients.worker import Gradient, Recipe, Worker
from paced_verl.launch.hydra import compose
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.store import Target, TargetStore

Run = tuple[DictConfig, PacedConfig]
PROBLEMS, SAMPLES = 24, 4
WORDS = ["<unk>", "<end>", "<pad>", "problem", "solve", *map(str, range(30))]
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}solve {% endif %}"


def write_model(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.5,
        eos_token_id=1, pad_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def write_table(path: Path, rates: np.ndarray) -> None:
    table = PassRateTable(PROBLEMS)
    table.observe(np.arange(PROBLEMS), rates, np.where(rates < 0, 0, SAMPLES).clip(0), step=0)
    table.save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 problems, six each of 0, 1, 2 and 4 of 4 right; problem 0 brings no response."""
    folder = tmp_path_factory.mktemp("run")
    for name, seed in (("student", 0), ("teacher", 1)):
        write_model(folder / name, seed)
    solutions = [None, *(f"{i % 7} {i} {i % 5}" for i in range(1, PROBLEMS))]
    rows = [
        {
            "data_source": "own",
            "prompt": [{"role": "user", "content": f"problem {i}"}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i, "solution": solution},
        }
        for i, solution in enumerate(solutions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    write_table(folder / "rates.parquet", np.repeat([0, 1, 2, 4], 6))
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    return [
        "+paced=two_stage",
        "+machine=cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=16",
        "data.max_response_length=5",
        f"actor_rollout_ref.model.path={folder}/student",
        f"distillation.teacher_models.teacher_model.model_path={folder}/teacher",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=2",
        "trainer.total_training_steps=4",
        "paced.teacher.topk=8",
        "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
        "reward.custom_reward_function.name=compute_score",
        f"paced.pass_rate.file={folder}/rates.parquet",
        "paced.targets.column=extra_info.solution",
        *more,
    ]


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """What the command makes of the overrides."""
    return checked(folder)


def checked(folder: Path, *more: str) -> Run:
    config = compose(overrides(folder, *more))
    return config, check(config)[0]


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Workers in this process; the prompts whose gradients they computed."""
    prompts: list[int] = []

    def here(recipe: Recipe, problems: list[Problem], *_: Any) -> Iterator[Gradient]:
        worker = Worker(recipe)
        for problem in problems:
            prompts.append(problem.prompt)
            yield worker.gradient(problem)

    monkeypatch.setattr(measure, "compute", here)
    return prompts


def diagnose(folder: Path, out: Path, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["diagnose", "snr", "--out", str(out), *options, *overrides(folder)])


def resolved(run: Run, **options: Any) -> Inputs:
    return resolve(*run, Options(**options))


def table_of(run: Run, out: Path, **options: Any) -> dict[str, list[Any]]:
    """The command without its command line: the table by column."""
    measurement = measure.plan(resolved(run, **options), out)
    measure.run(measurement, run[0], None)
    table: dict[str, list[Any]] = evaluate(measurement).table().to_pydict()
    return table


def by_definition(found: Inputs) -> dict[int, float]:
    """The paper's SNR of each bin, from whole gradients."""
    worker = Worker(found.recipe)
    result = {}
    for place in np.unique(found.bins):
        chosen = [problem for problem, bin in zip(found.problems, found.bins, strict=True) if bin == place]
        g = np.array([worker.gradient(problem).sketch for problem in chosen], np.float64)
        spread = np.sqrt(np.mean(np.sum((g - g.mean(0)) ** 2, axis=1)))
        result[int(place)] = float(np.linalg.norm(g.mean(0)) / spread)
    return result


@pytest.mark.parametrize("stage", [1, 2])
def test_the_table_has_the_papers_snr_by_bin(run: Run, tmp_path: Path, stage: int) -> None:
    expected = by_definition(resolved(run, stage=stage))
    table = table_of(run, tmp_path, stage=stage)
    assert sorted(expected) == [0, 2, 5, 9]
    assert table["problems"] == [{0: 5 if stage == 1 else 6}.get(i, 6 if i in expected else 0) for i in range(10)]
    for place, value in expected.items():
        assert table["snr"][place] == pytest.approx(value, rel=1e-5)
        assert table["snr_low"][place] < table["snr_high"][place]
        assert table["projection_error"][place] == 0
    assert [rate for rate in table["pass_rate"] if rate >= 0] == [0, 0.25, 0.5, 1]


def test_the_command_says_what_it_will_do_does_it_and_shows_it(folder: Path, run: Run, tmp_path: Path) -> None:
    done = diagnose(folder, tmp_path, "--dimensions", "600")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert f"23 problems by their pass rates in {folder}/rates.parquet (a bin: 5, 0, 6, 0, 0, 6, 0, 0, 0, 6)" in lines
    assert "one gradient each of forward_kl on stored responses: 23 gradients, 0 of them there already" in lines
    of = "of model.embed_tokens.weight = lm_head.weight: 640 numbers"
    assert any(line.startswith(of) and "kept as 600 numbers" in line for line in lines)
    table = pq.read_table(tmp_path / "snr.parquet").to_pydict()
    assert str(table) == str(table_of(run, tmp_path / "again", dimensions=600))
    assert all(f"{table['snr'][place]:.3f}" in done.stdout for place in (0, 2, 5, 9))
    numbers = json.loads((tmp_path / "snr.json").read_text())
    assert f"a = {numbers['exponents']['plain']['a']:.2f} [" in done.stdout
    assert numbers["settings"]["student"] == f"{folder}/student"
    assert (tmp_path / "snr.png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_where_it_was_killed(
    run: Run, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table_of(run, tmp_path / "whole")
    everyone, write, left = set(computed), Parts.write, [7]

    def killed(self: Parts, gradient: Gradient) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, gradient)

    monkeypatch.setattr(Parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        table_of(run, tmp_path / "killed")
    monkeypatch.setattr(Parts, "write", write)
    assert len(list((tmp_path / "killed" / "parts").iterdir())) == 7
    computed.clear()
    assert str(table_of(run, tmp_path / "killed")) == str(whole)
    assert (len(computed), len(everyone)) == (16, 23)
    computed.clear()
    assert str(table_of(run, tmp_path / "killed")) == str(whole)
    assert computed == []


def test_other_settings_do_not_take_each_others_gradients(run: Run, tmp_path: Path, computed: list[int]) -> None:
    first = table_of(run, tmp_path, per_bin=2)
    other = table_of(run, tmp_path, per_bin=2, module=r"model\.norm\.weight")
    assert len(computed) == 16
    assert other["snr"][0] != first["snr"][0]
    assert str(table_of(run, tmp_path, per_bin=2)) == str(first)
    assert len(computed) == 16


def test_a_projection_is_within_its_error(run: Run, tmp_path: Path) -> None:
    whole, short = table_of(run, tmp_path), table_of(run, tmp_path, dimensions=64)
    for place in (0, 2, 5, 9):
        assert 0 < abs(short["snr"][place] - whole["snr"][place]) < 4 * short["projection_error"][place]
        assert short["gradient_norm"][place] == pytest.approx(whole["gradient_norm"][place]), "lengths are exact"


def test_bins_hold_at_most_so_many_and_only_problems_with_a_response(run: Run) -> None:
    found = resolved(run, per_bin=6)
    prompts = [problem.prompt for problem in found.problems]
    assert sorted(prompts) == list(range(1, PROBLEMS)), "the first has none"
    assert found.bins.tolist() == bins_of(np.repeat([0, 1, 2, 4], 6)[prompts], np.full(23, 4)).tolist()
    three = resolved(run, per_bin=3)
    assert np.bincount(three.bins).tolist() == [3, 0, 3, 0, 0, 3, 0, 0, 0, 3]
    assert [p.prompt for p in resolved(run, per_bin=3, seed=1).problems] != [p.prompt for p in three.problems]


def test_problems_are_what_a_run_would_train_on(folder: Path, run: Run, tmp_path: Path) -> None:
    """The data's response with its end, a stored one before it, both cut; the teacher reads its own context."""
    ids = {word: i for i, word in enumerate(WORDS)}
    store = TargetStore()
    store.add(3, Target((7, 8, 9, 10, 11, 12, 13)))
    store.save(tmp_path / "targets.parquet")
    stored = checked(folder, f"paced.targets.file={tmp_path}/targets.parquet", "paced.teacher.context=answer")
    problems = {problem.prompt: problem for problem in resolved(stored).problems}
    assert problems[3].responses == ((7, 8, 9, 10, 11),)
    assert problems[20].responses == ((ids["6"], ids["20"], ids["0"], ids["<end>"]),)
    assert problems[20].student_prompt == (ids["problem"], ids["20"], ids["solve"])
    assert len(problems[20].teacher_prompt) > 3
    assert ids["20"] in problems[20].teacher_prompt
    assert resolved(run, stage=2).problems[0].responses == ()


def test_the_objective_is_the_stages(folder: Path) -> None:
    config, paced = checked(
        folder,
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "distillation.distillation_loss.loss_max_clamp=3",
        "paced.tokens.select=tip",
        "paced.schedule.1.divergence=jsd",
        "+paced.schedule.1.parameters={beta: 0.3}",
    )
    first, second = (objective_of(config, paced, stage) for stage in paced.schedule)
    assert (first.divergence, first.topk, first.says_tail, first.token_mean) == ("forward_kl", 8, False, True)
    assert (second.divergence, second.parameters, second.clamp, second.select) == ("jsd", {"beta": 0.3}, 3, "tip")
    turns = StageConfig(until=1.0, divergence={"from": "reverse_kl", "to": "akl"}, responses="student")
    assert objective_of(config, paced, turns).divergence == "reverse_kl"


def test_a_teacher_in_the_trainer_says_its_whole_distribution(folder: Path) -> None:
    on_policy = "paced.schedule=[{until: 1.0, divergence: reverse_kl, responses: student}]"
    run = checked(folder, on_policy, "paced.teacher.backend=reference", "paced.teacher.topk=full")
    recipe = resolved(run).recipe
    assert (recipe.objective.topk, recipe.objective.says_tail, recipe.teacher) == ("full", True, f"{folder}/teacher")


def test_the_student_writes_as_many_responses_as_in_the_run_or_as_said(run: Run) -> None:
    assert resolved(run, stage=2).recipe.responses == 2
    assert resolved(run, stage=2, responses=5).recipe.responses == 5


def test_a_checkpoint_brings_its_weights_and_its_pass_rates(folder: Path, run: Run, tmp_path: Path) -> None:
    step = tmp_path / "global_step_7"
    write_model(step / "actor" / "huggingface", 3)
    write_table(step / "paced" / "pass_rates.parquet", np.repeat([4, 0], 12))
    for path in (step, step / "actor"):
        found = resolved(run, model=str(path))
        assert found.recipe.student == str(step / "actor" / "huggingface")
        assert found.table == step / "paced" / "pass_rates.parquet"
        assert np.bincount(found.bins).tolist() == [12, *[0] * 8, 11]
    assert found.recipe.teacher == f"{folder}/teacher"
    own = checked(folder, "paced.teacher.backend=student", "paced.teacher.context=answer")
    assert resolved(own, model=str(step)).recipe.teacher == found.recipe.student, "whose weights are always its own"


@pytest.mark.parametrize(
    ("options", "key", "value", "message"),
    [
        ({}, "pass_rate.file", None, "There are no pass rates"),
        ({}, "targets.column", None, "`paced-verl targets` writes them"),
        ({"stage": 3}, "targets.column", None, "--stage 3: paced.schedule has 2 stage"),
        ({"responses": 2}, "targets.column", None, "--responses 2: stage 1 trains on the teacher's responses"),
        ({"stage": 2}, "teacher.context", "rollout", "none that shows a rollout"),
        ({"stage": 2}, "teacher.context", {"a": "none", "b": "answer"}, "knows one context"),
    ],
)
def test_a_mistake_says_what_to_do(run: Run, options: dict[str, Any], key: str, value: Any, message: str) -> None:
    config, paced = run
    part, name = key.split(".")
    changed = getattr(paced, part).model_copy(update={name: value})
    with pytest.raises(PacedError, match=message):
        resolve(config, paced.model_copy(update={part: changed}), Options(**options))


def test_prompts_that_nobody_has_sampled_are_a_mistake(run: Run, tmp_path: Path) -> None:
    """A checkpoint's own table, which no check has read."""
    write_model(tmp_path, 3)
    PassRateTable(PROBLEMS).save(tmp_path / "paced" / "pass_rates.parquet")
    with pytest.raises(PacedError, match="nobody has sampled any of these prompts"):
        resolved(run, model=str(tmp_path), stage=2)


def test_an_unknown_module_is_a_message_before_any_work(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    done = diagnose(folder, tmp_path, "--module", "lm_haed")
    assert done.exit_code == 1
    assert "--module lm_haed" in done.stderr
    assert "Did you mean 'lm_head'?" in done.stderr
    assert computed == []


def test_a_damaged_part_is_said(run: Run, tmp_path: Path) -> None:
    table_of(run, tmp_path, per_bin=2)
    part = next((tmp_path / "parts").iterdir())
    part.write_bytes(b"not parquet")
    with pytest.raises(PacedError, match=f"{part} is not a gradient .* Delete it"):
        table_of(run, tmp_path, per_bin=2)


def test_more_workers_than_gpus_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(measure.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(measure.ray, "cluster_resources", lambda: {"GPU": 2.0})
    config = OmegaConf.merge(run[0], {"trainer": {"device": "cuda"}})
    with pytest.raises(PacedError, match="--workers 3: each takes a GPU, and Ray's cluster has 2"):
        next(measure.compute(resolved(run).recipe, [Problem(0, (3,), (3,))] * 3, config, 3))


def test_more_workers_than_cores_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for ever for the cores of those that are left."""
    monkeypatch.undo()
    monkeypatch.setattr(measure.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(measure.ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(PacedError, match="--workers 3: each takes a core, and Ray's cluster has 2"):
        next(measure.compute(resolved(run).recipe, [Problem(0, (3,), (3,))] * 3, run[0], 3))


def test_a_gradient_that_is_no_number_is_said_and_not_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", {7: "key"})
    for length in (np.nan, np.inf):
        with pytest.raises(PacedError, match=r"gradient of prompt 7 is not finite.*--dtype float32"):
            parts.write(Gradient(7, length, np.zeros(4, np.float32), 0.5, 3))
    assert parts.missing() == [7]


def test_lengths_are_exact_where_products_are_of_sketches() -> None:
    kept = [Gradient(i, 9.0, np.array([1.0, float(i)], np.float32), 0.5, 3) for i in range(2)]
    assert gram(kept).tolist() == [[9, 1], [1, 9]]


def test_the_choice_stops_looking_once_a_bin_is_full() -> None:
    """A data set has millions of prompts: no more of them are read than are needed."""
    asked: list[int] = []

    class Every:
        def __getitem__(self, prompt: int) -> tuple[tuple[int, ...], ...]:
            asked.append(prompt)
            return ((1,),)

    bins = np.zeros(1000, np.int64)
    assert len(choose(bins, Options(per_bin=3), Every())) == len(asked) == 3  # type: ignore[arg-type]
