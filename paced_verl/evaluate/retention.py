"""What a model forgot: lm-evaluation-harness before and after, compared question by question.

Both models answer the same questions with the same prompts. Each is loaded in a process of its own, which gives back
its memory, whatever the backend keeps.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paced_verl.errors import nearest
from paced_verl.evaluate import EvaluationError, check_writable, write_json
from paced_verl.evaluate.models import weights_folder
from paced_verl.statistics import estimate, paired

DRAW_SEED = 0
METRICS = ("acc", "exact_match")  # by question, in this order
BACKENDS = {"hf": "transformers", "vllm": "vllm"}  # the harness's name, the package it needs


@dataclass(frozen=True)
class Answers:
    """A model's scores on one task of the harness.

    Attributes:
        scores: By the question's number in the data set, the metric's value, mostly 0 or 1.
        questions: By the same number, hashes of the question and of the prompt it was asked with.
        metric: Which of ``METRICS``.
        shots: Examples in the prompt; a task that fixes them keeps its number.
    """

    scores: dict[int, float]
    questions: dict[int, tuple[str, str]]
    metric: str
    shots: int


def draw(sizes: Mapping[str, int], limit: int, seed: int = DRAW_SEED) -> dict[str, list[int]]:
    """Draw ``limit`` questions at random, without repetition, from all tasks together; all, if they have fewer.

    Args:
        sizes: Number of questions of each task.

    Returns:
        Their numbers, rising, by task; tasks of which none was drawn are left out.
    """
    total = sum(sizes.values())
    chosen = np.arange(total)
    if limit < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
    starts = np.cumsum([0, *sizes.values()])
    drawn = {
        name: (chosen[(chosen >= start) & (chosen < start + sizes[name])] - start).tolist()
        for name, start in zip(sizes, starts, strict=False)
    }
    return {name: numbers for name, numbers in drawn.items() if numbers}


def compare(before: Mapping[str, Answers], after: Mapping[str, Answers]) -> dict[str, Any]:
    """Forgetting over the questions of all given tasks.

    Args:
        before, after: The two models' answers, by task.

    Returns:
        ``questions``, accuracies ``before`` and ``after``, ``forgetting`` = before − after with its paired
        ``standard_error`` and 95 % ``interval``, ``metric``, ``num_fewshot``.

    Raises:
        EvaluationError: The models did not answer the same questions with the same prompts.
    """
    scores: list[tuple[float, float]] = []
    for task in before:
        first, second = before[task], after[task]
        if first.questions != second.questions or first.shots != second.shots:
            raise EvaluationError(f"{task}: the two models were not asked the same questions with the same prompts.")
        scores += [(first.scores[number], second.scores[number]) for number in first.scores]
    first_scores, second_scores = np.array(scores).T
    forgetting = paired(first_scores, second_scores)
    return {
        "questions": forgetting.units,
        "before": estimate(first_scores).mean,
        "after": estimate(second_scores).mean,
        "forgetting": forgetting.mean,
        "standard_error": forgetting.standard_error,
        "interval": forgetting.interval,
        "metric": "/".join(sorted({answers.metric for answers in before.values()})),
        "num_fewshot": max(answers.shots for answers in before.values()),
    }


def evaluate_retention(
    *,
    before: str,
    after: str,
    tasks: Sequence[str] = ("mmlu",),
    out: Path,
    num_fewshot: int = 5,
    limit: int = 2000,
    backend: str = "hf",
    model_args: str = "",
    batch_size: str = "auto",
    include_path: Path | None = None,
) -> dict[str, Any]:
    """Accuracy lost between two models on tasks of lm-evaluation-harness; the defaults are the paper's.

    Args:
        before, after: A Hugging Face folder, a checkpoint of verl, or a name on the hub.
        tasks: Names of tasks or groups of the harness.
        out: The JSON file to write.
        num_fewshot: Examples in the prompt.
        limit: Questions of each of ``tasks``, drawn at random with a fixed seed over all that a group holds.
        backend: ``hf`` or ``vllm``.
        model_args: More arguments of the backend, ``key=value,key=value``.
        batch_size: A number, or ``auto``.
        include_path: Folder with task files of one's own.

    Returns:
        What ``out`` holds: the settings, and by task what `compare` gives, for a group also by each of its tasks
        (``subtasks``), and every question's score (``scores``: by task ``[number, before, after]``).

    Raises:
        FileNotFoundError: No such model or folder.
        EvaluationError: lm-eval or the backend is not installed, a task is unknown or cannot be loaded, or its metric
            is none of ``METRICS``.
    """
    if backend not in BACKENDS or importlib.util.find_spec(BACKENDS[backend]) is None:
        raise EvaluationError(f"--backend {backend}: expected hf, or vllm where vLLM is installed.")
    check_writable(out)
    models = {"before": weights_folder(before), "after": weights_folder(after)}
    manager = _task_manager(tasks, include_path)
    leaves = {name: _sizes(manager, name) for name in tasks}
    drawn = {name: draw(sizes, limit) for name, sizes in leaves.items()}
    questions = _joined(drawn)
    answers: dict[str, dict[str, Answers]] = {}
    dtypes: dict[str, str | None] = {}
    for when, model in models.items():
        print(f"{when}: {model} answers {sum(map(len, questions.values()))} questions", flush=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            asked = process.submit(
                _ask, manager, list(tasks), questions, backend, model, model_args, num_fewshot, batch_size
            )
            answers[when], dtypes[when] = asked.result()
    first, second = answers["before"], answers["after"]
    results = {}
    for name, chosen in drawn.items():
        results[name] = compare({task: first[task] for task in chosen}, second)
        if list(chosen) != [name]:
            results[name]["subtasks"] = {task: compare({task: first[task]}, second) for task in chosen}
    report = {
        "before": before,
        "after": after,
        "weights": models,
        "dtypes": dtypes,
        "backend": backend,
        "model_args": model_args,
        "limit": limit,
        "draw_seed": DRAW_SEED,
        "lm_eval": importlib.metadata.version("lm-eval"),
        "results": results,
        "scores": {
            task: [[number, score, second[task].scores[number]] for number, score in first[task].scores.items()]
            for task in questions
        },
    }
    write_json(out, report)
    return report


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of tasks, which knows all of ``tasks``."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(f"lm-eval cannot be imported ({error}): pip install 'paced-verl[eval]'") from error
    if include_path is not None and not include_path.is_dir():
        raise FileNotFoundError(f"--include-path {include_path}: expected a folder with task files.")
    # Its own tasks are 14,000 files, which take half a minute to read on a slow machine.
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    check_known(tasks, manager.all_tasks)
    return manager


def check_known(tasks: Iterable[str], known: Iterable[str]) -> None:
    """Raise EvaluationError where a task is not among the ``known`` ones."""
    names = list(known)
    for task in tasks:
        if task not in names:
            raise EvaluationError(
                f"--tasks {task}: lm-eval has no task of this name. {nearest(task, names)} "
                "Tasks of your own are found with --include-path FOLDER."
            )


def _sizes(manager: Any, name: str) -> dict[str, int]:
    """Number of questions of the task, or of every task of the group. Loads their data."""
    try:
        loaded = manager.load([name])["tasks"]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"--tasks {name}: its data cannot be loaded: {error}") from error
    return {task: len(loaded[task].eval_docs) for task in loaded}


def _joined(drawn: Mapping[str, Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """The questions of all tasks, each task once."""
    joined: dict[str, list[int]] = {}
    for name, chosen in drawn.items():
        for task in chosen:
            if task in joined:
                raise EvaluationError(f"--tasks {name}: its task {task} is part of another of --tasks, too; drop one.")
        joined.update(chosen)
    return joined


def _ask(
    manager: Any,
    names: list[str],
    questions: dict[str, list[int]],
    backend: str,
    model: str,
    model_args: str,
    num_fewshot: int,
    batch_size: str,
) -> tuple[dict[str, Answers], str | None]:
    """Have one model answer; runs in a process of its own. Returns its answers by task, and its dtype if known."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.utils import simple_parse_args_string

    loaded = manager.load(names)["tasks"]
    # The harness's own choice for hf is a GPU, whether there is one or not.
    device = {"device": "cpu"} if backend == "hf" and not torch.cuda.is_available() else {}
    found = simple_evaluate(
        backend,
        {"pretrained": model, **device, **simple_parse_args_string(model_args)},
        tasks=[loaded[task] for task in questions],
        num_fewshot=num_fewshot,
        samples=questions,
        batch_size=batch_size,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    dtype = found["config"].get("model_dtype")
    answers = {task: _answers(task, found["samples"][task], found["n-shot"][task]) for task in questions}
    return answers, None if dtype is None else str(dtype)


def _answers(task: str, samples: list[dict[str, Any]], shots: int) -> Answers:
    """The harness's log of one task, by question. Of several filters of an answer, the task's first counts."""
    metric = next((metric for metric in METRICS if metric in samples[0]["metrics"]), None)
    if metric is None:
        raise EvaluationError(
            f"--tasks {task}: expected a metric {' or '.join(METRICS)}, its own are {', '.join(samples[0]['metrics'])}."
        )
    counted = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return Answers(
        scores={sample["doc_id"]: float(sample[metric]) for sample in counted},
        questions={sample["doc_id"]: (sample["doc_hash"], sample["prompt_hash"]) for sample in counted},
        metric=metric,
        shots=int(shots),
    )
