"""lm-evaluation-harness on two random models, against log-likelihoods in plain torch on the same questions."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from paced_verl.evaluate import EvaluationError, retention
from paced_verl.evaluate.retention import Answers, check_known, compare, draw, evaluate_retention

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{dev: {folder}/dev.jsonl, test: {folder}/{name}.jsonl}}}}
fewshot_split: dev
test_split: test
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
fewshot_delimiter: "\\n"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SIZES = {"sums": 24, "differences": 16}
SHOTS, LIMIT = 2, 30


def question(rng: random.Random, sign: str) -> dict[str, Any]:
    a, b = rng.randint(10, 49), rng.randint(10, 49)
    choices = [str(n) for n in rng.sample(range(10, 99), 4)]
    return {"question": f"{a} {sign} {b} =", "choices": choices, "answer": rng.randrange(4)}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of two tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    rows = {name: [question(rng, "+-"[i]) for _ in range(size)] for i, (name, size) in enumerate(SIZES.items())}
    rows["dev"] = [question(rng, "+") for _ in range(SHOTS)]
    for name, questions in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for name in SIZES:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder))
    (folder / "arithmetic.yaml").write_text(f"group: arithmetic\ntask: [{', '.join(SIZES)}]\n")
    return folder


def make_model(folder: Path, seed: int) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(wrapped),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.5,  # opinions, not a coin toss of the last digit
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return make_model(folder / "before", 1), make_model(folder / "after", 2)


@torch.no_grad()
def by_hand(folder: Path, tasks: Path, name: str) -> list[float]:
    """1 where the right choice has the largest sum of log-probabilities after the examples and the question."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (tasks / f"{name}.jsonl").read_text().splitlines()]
    shots = [json.loads(line) for line in (tasks / "dev.jsonl").read_text().splitlines()]
    context = "".join(f"{shot['question']} {shot['choices'][shot['answer']]}\n" for shot in shots)
    scores = []
    for row in rows:
        sums = []
        for choice in row["choices"]:
            prompt = tokenizer(context + row["question"])["input_ids"]
            ids = torch.tensor(prompt + tokenizer(" " + choice)["input_ids"])
            logprobs = model(ids[None]).logits[0].log_softmax(dim=-1)
            positions = torch.arange(len(prompt), len(ids))
            sums.append(logprobs[positions - 1, ids[positions]].sum().item())
        scores.append(float(max(range(4), key=sums.__getitem__) == row["answer"]))
    return scores


def run(before: Path, after: Path, tasks: Path, out: Path) -> dict[str, Any]:
    evaluate_retention(
        before=str(before),
        after=str(after),
        tasks=["arithmetic"],
        out=out,
        num_fewshot=SHOTS,
        limit=LIMIT,
        batch_size="8",
        include_path=tasks,
    )
    return json.loads(out.read_text())


def test_forgetting_is_that_of_the_log_likelihoods(pair: tuple[Path, Path], tasks: Path, tmp_path: Path) -> None:
    report = run(*pair, tasks, tmp_path / "out.json")
    drawn = draw(SIZES, LIMIT)
    truth = {
        name: [(first[i], second[i]) for i in drawn[name]]
        for name in SIZES
        for first, second in [[by_hand(folder, tasks, name) for folder in pair]]
    }
    assert {name: [tuple(row) for row in rows] for name, rows in report["scores"].items()} == {
        name: [(i, *scores) for i, scores in zip(drawn[name], truth[name], strict=True)] for name in SIZES
    }
    everything = [scores for name in SIZES for scores in truth[name]]
    found = report["results"]["arithmetic"]
    for result, scores in [(found, everything), *((found["subtasks"][name], truth[name]) for name in SIZES)]:
        differences = [first - second for first, second in scores]
        assert any(differences), "two random models that agree on everything test nothing"
        assert result["questions"] == len(scores)
        assert result["before"] == pytest.approx(statistics.mean(first for first, _ in scores))
        assert result["after"] == pytest.approx(statistics.mean(second for _, second in scores))
        assert result["forgetting"] == pytest.approx(statistics.mean(differences))
        assert result["standard_error"] == pytest.approx(statistics.stdev(differences) / math.sqrt(len(differences)))
    assert (found["metric"], found["num_fewshot"], found["questions"]) == ("acc", SHOTS, LIMIT)


def test_the_same_model_forgets_exactly_nothing(
    pair: tuple[Path, Path], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes of their own were tested above; they take most of the time.
    monkeypatch.setattr(retention, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    copy = shutil.copytree(pair[0], tmp_path / "copy")
    found = run(pair[0], copy, tasks, tmp_path / "out.json")["results"]["arithmetic"]
    assert (found["forgetting"], found["standard_error"], found["interval"]) == (0.0, 0.0, [0.0, 0.0])
    assert 0 < found["before"] < 1


def test_questions_are_drawn_over_a_whole_group() -> None:
    sizes = {"a": 300, "b": 100, "c": 1}
    drawn = draw(sizes, 200)
    assert sum(map(len, drawn.values())) == 200
    assert all(numbers == sorted(set(numbers)) and numbers[-1] < sizes[name] for name, numbers in drawn.items())
    # Hypergeometric: 150 of the first in the mean, standard deviation 4.3.
    assert 130 < len(drawn["a"]) < 170
    assert draw(sizes, 200) == drawn
    assert draw(sizes, 10**6) == {name: list(range(size)) for name, size in sizes.items()}
    assert "c" not in draw(sizes, 2)


def answers(scores: list[float], prompt: str = "p") -> Answers:
    return Answers(dict(enumerate(scores)), dict.fromkeys(range(len(scores)), ("q", prompt)), "acc", 5)


def test_answers_to_other_questions_are_not_compared() -> None:
    first = {"task": answers([1.0, 0.0])}
    assert compare(first, {"task": answers([0.0, 0.0])})["forgetting"] == 0.5
    for other in (answers([1.0, 0.0], prompt="another"), answers([1.0]), replace(first["task"], shots=0)):
        with pytest.raises(EvaluationError, match="same questions"):
            compare(first, {"task": other})


def test_tasks_that_cannot_be_evaluated_are_refused_before_a_model_is_loaded(
    pair: tuple[Path, Path], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(names: list[str], **options: Any) -> None:
        model = str(pair[0])
        evaluate_retention(before=model, after=model, tasks=names, out=tmp_path / "out.json", **options)

    (tmp_path / "absent.yaml").write_text(TASK.format(name="absent", folder=tmp_path))
    with pytest.raises(EvaluationError, match="absent: its data cannot be loaded"):
        evaluate(["absent"], include_path=tmp_path)
    with pytest.raises(EvaluationError, match="sums is part of another"):
        evaluate(["arithmetic", "sums"], include_path=tasks)
    with pytest.raises(EvaluationError, match="--backend llama: expected hf, or vllm"):
        evaluate(["sums"], include_path=tasks, backend="llama")
    with pytest.raises(FileNotFoundError, match="--include-path"):
        evaluate(["sums"], include_path=tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"mmlu_pr: .*Did you mean 'mmlu_pro'"):
        check_known(["mmlu", "mmlu_pr"], ["mmlu", "mmlu_pro"])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(EvaluationError, match=r"paced-verl\[eval\]"):
        evaluate(["sums"], include_path=tasks)
