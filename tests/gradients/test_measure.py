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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from paced_verl import cli
from paced_verl.checks import check
from paced_verl.diagnostics.snr import bins_of
from paced_verl.errors import PacedError
from paced_verl.gradients import inputs, measure
from paced_verl.gradients.inputs import Inputs, Options, resolve
from paced_verl.gradients.problem import Problem
from paced_verl.gradients.worker import Gradient, Recipe, Worker
from paced_verl.launch.hydra import compose
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.store import Target, TargetStore

PROBLEMS, SAMPLES = 24, 4
OWN_RESPONSES = "paced.schedule=[{until: 1.0, divergence: reverse_kl, responses: student}]"
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


@pytest.fixture
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


def diagnose(folder: Path, out: Path, *options: str, more: tuple[str, ...] = ()) -> Any:
    return CliRunner().invoke(cli.app, ["diagnose", "snr", "--out", str(out), *options, *overrides(folder, *more)])


def resolved(folder: Path, *more: str, **options: Any) -> Inputs:
    config = compose(overrides(folder, *more))
    return resolve(config, check(config)[0], Options(**options))


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
def test_the_command_writes_the_papers_snr_by_bin(
    folder: Path, tmp_path: Path, computed: list[int], stage: int
) -> None:
    done = diagnose(folder, tmp_path, "--stage", str(stage))
    assert done.exit_code == 0, done.output
    expected = by_definition(resolved(folder, stage=stage))
    table = pq.read_table(tmp_path / "snr.parquet").to_pydict()
    assert sorted(expected) == [0, 2, 5, 9]
    assert table["problems"] == [{0: 5 if stage == 1 else 6}.get(i, 6 if i in expected else 0) for i in range(10)]
    for place, value in expected.items():
        assert table["snr"][place] == pytest.approx(value, rel=1e-5)
        assert f"{value:.3f}" in done.output
        assert table["snr_low"][place] < table["snr_high"][place]
    assert [rate for rate in table["pass_rate"] if rate is not None and rate >= 0] == [0, 0.25, 0.5, 1]
    assert table["projection_error"][0] == 0
    exponents = json.loads((tmp_path / "snr.json").read_text())["exponents"]
    assert f"a = {exponents['plain']['a']:.2f} [" in done.output
    assert (tmp_path / "snr.png").read_bytes().startswith(b"\x89PNG")


def test_the_plan_says_what_will_be_done_before_it_is(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    done = diagnose(folder, tmp_path, "--dimensions", "64")
    lines = done.stdout.splitlines()
    assert f"23 problems by their pass rates in {folder}/rates.parquet (a bin: 5, 0, 6, 0, 0, 6, 0, 0, 0, 6)" in lines
    assert "one gradient each of forward_kl on stored responses: 23 gradients, 0 of them there already" in lines
    of = "of model.embed_tokens.weight = lm_head.weight: 640 numbers"
    assert any(line.startswith(of) and "kept as 64 numbers" in line for line in lines)


def test_it_goes_on_where_it_was_killed(
    folder: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = diagnose(folder, tmp_path / "whole")
    everyone, write, left = set(computed), measure.Parts.write, [7]

    def killed(self: measure.Parts, gradient: Gradient) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, gradient)

    with monkeypatch.context() as patch:
        patch.setattr(measure.Parts, "write", killed)
        assert diagnose(folder, tmp_path / "killed").exit_code != 0
    assert len(list((tmp_path / "killed" / "parts").iterdir())) == 7
    computed.clear()
    again = diagnose(folder, tmp_path / "killed")
    assert again.exit_code == 0, again.output
    assert (len(computed), len(everyone)) == (16, 23)
    tables = [pq.read_table(tmp_path / name / "snr.parquet") for name in ("whole", "killed")]
    assert str(tables[0].to_pydict()) == str(tables[1].to_pydict())
    computed.clear()
    assert diagnose(folder, tmp_path / "killed").stdout.splitlines()[-3:-1] == whole.stdout.splitlines()[-3:-1]
    assert computed == []


def test_other_settings_do_not_take_each_others_gradients(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    diagnose(folder, tmp_path, "--per-bin", "2")
    assert len(computed) == 8
    diagnose(folder, tmp_path, "--per-bin", "2", "--module", r"model\.norm\.weight")
    assert len(computed) == 16
    diagnose(folder, tmp_path, "--per-bin", "2", more=("paced.schedule.0.divergence=jsd",))
    assert len(computed) == 24
    diagnose(folder, tmp_path, "--per-bin", "2")
    assert len(computed) == 24


def test_a_projection_is_within_its_error(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    diagnose(folder, tmp_path / "whole")
    diagnose(folder, tmp_path / "short", "--dimensions", "64")
    whole, short = (pq.read_table(tmp_path / name / "snr.parquet").to_pydict() for name in ("whole", "short"))
    for place in (0, 2, 5, 9):
        assert 0 < abs(short["snr"][place] - whole["snr"][place]) < 4 * short["projection_error"][place]


def test_bins_hold_at_most_so_many_and_only_problems_with_a_response(folder: Path) -> None:
    found = resolved(folder, per_bin=6)
    prompts = [problem.prompt for problem in found.problems]
    assert sorted(prompts) == list(range(1, PROBLEMS)), "the first has none"
    assert found.bins.tolist() == bins_of(np.repeat([0, 1, 2, 4], 6)[prompts], np.full(23, 4)).tolist()
    assert np.bincount(resolved(folder, per_bin=3).bins).tolist() == [3, 0, 3, 0, 0, 3, 0, 0, 0, 3]
    assert [p.prompt for p in resolved(folder, per_bin=3, seed=1).problems] != [
        p.prompt for p in resolved(folder, per_bin=3).problems
    ]


def test_problems_are_what_a_run_would_train_on(folder: Path, tmp_path: Path) -> None:
    """The data's response with its end, a stored one before it, both cut; the teacher reads its own context."""
    ids = {word: i for i, word in enumerate(WORDS)}
    store = TargetStore()
    store.add(3, Target((7, 8, 9, 10, 11, 12, 13)))
    store.save(tmp_path / "targets.parquet")
    more = (f"paced.targets.file={tmp_path}/targets.parquet", "paced.teacher.context=answer")
    problems = {problem.prompt: problem for problem in resolved(folder, *more).problems}
    assert problems[3].responses == ((7, 8, 9, 10, 11),)
    assert problems[20].responses == ((ids["6"], ids["20"], ids["0"], ids["<end>"]),)
    assert problems[20].student_prompt == (ids["problem"], ids["20"], ids["solve"])
    assert len(problems[20].teacher_prompt) > 3
    assert ids["20"] in problems[20].teacher_prompt
    assert resolved(folder, stage=2).problems[0].responses == ()


def test_the_objective_is_the_stages(folder: Path) -> None:
    more = (
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "distillation.distillation_loss.loss_max_clamp=3",
        "paced.tokens.select=tip",
        "paced.schedule.1.divergence=jsd",
        "+paced.schedule.1.parameters={beta: 0.3}",
    )
    first, second = (resolved(folder, *more, stage=stage).recipe.objective for stage in (1, 2))
    assert (first.divergence, first.topk, first.says_tail, first.token_mean) == ("forward_kl", 8, False, True)
    assert (second.divergence, second.parameters, second.clamp, second.select) == ("jsd", {"beta": 0.3}, 3, "tip")
    full = (OWN_RESPONSES, "paced.teacher.backend=reference", "paced.teacher.topk=full")
    exact = resolved(folder, *full).recipe
    assert (exact.objective.topk, exact.objective.says_tail, exact.teacher) == ("full", True, f"{folder}/teacher")
    between = resolved(folder, "paced.schedule.0.divergence={from: reverse_kl, to: akl}").recipe.objective
    assert between.divergence == "reverse_kl"
    assert resolved(folder, stage=2).recipe.responses == 2
    assert resolved(folder, stage=2, responses=5).recipe.responses == 5


def test_a_checkpoint_brings_its_weights_and_its_pass_rates(folder: Path, tmp_path: Path) -> None:
    step = tmp_path / "global_step_7"
    write_model(step / "actor" / "huggingface", 3)
    (step / "paced").mkdir()
    write_table(step / "paced" / "pass_rates.parquet", np.repeat([4, 0], 12))
    found = resolved(folder, model=str(step))
    assert found.recipe.student == str(step / "actor" / "huggingface")
    assert found.table == step / "paced" / "pass_rates.parquet"
    assert np.bincount(found.bins).tolist() == [12, *[0] * 8, 11]
    own = ("paced.teacher.backend=student", "paced.teacher.context=answer")
    assert resolved(folder, *own, model=str(step)).recipe.teacher == found.recipe.student


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({}, ("paced.pass_rate.file=null",), "There are no pass rates"),
        ({}, ("paced.targets.column=null",), "`paced-verl targets` writes them"),
        ({"stage": 3}, (), "--stage 3: paced.schedule has 2 stage"),
        ({"responses": 2}, (), "--responses 2: stage 1 trains on the teacher's responses"),
        ({}, (OWN_RESPONSES, "paced.teacher.context=rollout"), "none that shows a rollout"),
    ],
)
def test_a_mistake_says_what_to_do(folder: Path, options: dict[str, Any], more: tuple[str, ...], message: str) -> None:
    with pytest.raises(PacedError, match=message):
        resolved(folder, *more, **options)


def test_prompts_that_nobody_has_sampled_are_a_mistake(folder: Path, tmp_path: Path) -> None:
    """A run's own table, which no check has read."""
    write_model(tmp_path, 3)
    PassRateTable(PROBLEMS).save(tmp_path / "paced" / "pass_rates.parquet")
    with pytest.raises(PacedError, match="nobody has sampled any of these prompts"):
        resolved(folder, model=str(tmp_path), stage=2)


def test_an_unknown_module_is_one_line_before_any_work(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    done = diagnose(folder, tmp_path, "--module", "lm_haed")
    assert done.exit_code == 1
    assert "--module lm_haed" in done.stderr
    assert "Did you mean 'lm_head'?" in done.stderr
    assert computed == []


def test_a_damaged_part_is_said(folder: Path, tmp_path: Path, computed: list[int]) -> None:
    diagnose(folder, tmp_path, "--per-bin", "2")
    part = next((tmp_path / "parts").iterdir())
    part.write_bytes(b"not parquet")
    done = diagnose(folder, tmp_path, "--per-bin", "2")
    assert done.exit_code == 1
    assert f"{part} is not a gradient" in done.stderr
    assert "Delete it" in done.stderr


def test_more_workers_than_gpus_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(measure.ray, "cluster_resources", lambda: {"GPU": 2.0})
    config = compose(overrides(folder, "trainer.device=cuda"))
    with pytest.raises(PacedError, match="--workers 3: each takes a GPU, and Ray's cluster has 2"):
        next(measure.compute(resolved(folder).recipe, [Problem(0, (3,), (3,))], config, 3))


def test_the_choice_stops_looking_once_a_bin_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set has millions of prompts: no more of them are read than are needed."""
    asked: list[int] = []

    class Every:
        def __getitem__(self, prompt: int) -> tuple[tuple[int, ...], ...]:
            asked.append(prompt)
            return ((1,),)

    bins = np.zeros(1000, np.int64)
    assert len(inputs.choose(bins, Options(per_bin=3), Every())) == len(asked) == 3  # type: ignore[arg-type]
