"""Prompts of several difficulties, students at several stages of learning them, and many of their responses.

The laboratory: reasoning-gym problems, the models of ``tiny_models.py``, the plan of ``regimes.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from paced_verl.tasks.reasoning_gym import problems, worked_solution
from paced_verl.tasks.reward import PREFIX, compute_score
from paced_verl.teacher.context import TeacherContext
from scripts.experiments.predicted.regimes import (
    COUNT,
    LONG,
    PROMPTS,
    REGIMES,
    STUDENTS,
    SUM,
    TEACHER_SAMPLES,
    TRUTH,
    Families,
    K,
    Regime,
)
from scripts.tiny_models import BATCH, END, Learner, make_model, make_tokenizer, messages, train

FRESH = 1_000_000  # seeds of training problems are apart from those of prompts
CHUNK = 64  # prompts that are sampled together
LONGEST = 20  # tokens of a response: more than the longest worked solution has
Problem = dict[str, Any]

STUDENT = Learner(hidden=64, layers=2, steps=800, seconds=1e9, learning_rate=5e-3)
TEACHER = Learner(hidden=128, layers=2, steps=600, seconds=1e9, learning_rate=3e-3)
TEACHERS = LONG | SUM | COUNT
"""Each family has its own teacher, which learns from these problems."""


def stream(families: Families, seed: int) -> Iterator[Problem]:
    """Problems of the families in turn, with their ``family``."""
    streams = {name: problems(name, settings, seed) for name, settings in families.items()}
    return (next(streams[name]) | {"family": name} for name in cycle(families))


def draw_prompts(regime: Regime, seed: int) -> list[Problem]:
    """PROMPTS different problems, some with another's answer."""
    found = {problem["question"]: problem for problem in islice(stream(regime.prompts, seed), 4 * PROMPTS)}
    chosen = list(found.values())[:PROMPTS]
    wrong = np.random.default_rng(seed).permutation(PROMPTS)[: round(regime.shuffled * PROMPTS)]
    answers = [chosen[i]["answer"] for i in np.roll(wrong, 1)]
    for i, answer in zip(wrong, answers, strict=True):
        chosen[i] = chosen[i] | {"answer": answer}
    return chosen


def solution(problem: Problem, rng: np.random.Generator) -> str:
    """One of the right responses to learn from: a sum is worked out in any order of its terms, or just answered."""
    if problem["family"] != "chain_sum":
        return problem["solution"]
    if rng.random() < 0.25:
        return f"Answer: {problem['answer']}"
    first, *rest = problem["metadata"]["expression"].split()
    terms = [f"+ {first}", *(f"{sign} {term}" for sign, term in zip(rest[::2], rest[1::2], strict=True))]
    first, *rest = rng.permutation(terms).tolist()
    expression = " ".join([first.removeprefix("+ ").replace("- ", "-"), *rest])
    return worked_solution("chain_sum", {"metadata": {"expression": expression}})


def prompt_ids(tokenizer: PreTrainedTokenizerFast, asked: list[Problem]) -> list[list[int]]:
    """Token ids up to where the response begins."""
    shown = [messages(problem, TeacherContext()) for problem in asked]
    return tokenizer(tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False))["input_ids"]


def learn(
    model: Qwen3ForCausalLM, tokenizer: Any, families: Families, learner: Learner, seed: int, asked: set[str]
) -> None:
    """Train on fresh problems, none of which is among the questions ``asked``."""
    rng = np.random.default_rng(seed)
    fresh = (problem for problem in stream(families, seed) if problem["question"] not in asked)
    studied = list(islice(fresh, BATCH * learner.steps))
    responses = tokenizer([solution(problem, rng) + END for problem in studied])["input_ids"]
    prompts = prompt_ids(tokenizer, studied)
    train(model, [(p + r, len(p)) for p, r in zip(prompts, responses, strict=True)], learner)


@torch.no_grad()
def sample(model: Qwen3ForCausalLM, tokenizer: Any, prompts: list[list[int]], samples: int) -> list[Counter]:
    """How often each response comes in ``samples`` independent ones at temperature 1, for each prompt."""
    parts = [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]
    return [counter for part in parts for counter in _sample(model, tokenizer, part, samples)]


def _sample(model: Qwen3ForCausalLM, tokenizer: Any, prompts: list[list[int]], samples: int) -> list[Counter]:
    """The same for prompts that fit into memory together.

    Samples with the same beginning share its forward pass: rows are beginnings, with the number of samples there.
    """
    found: list[Counter] = [Counter() for _ in prompts]
    encoded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    ids, mask, cache = encoded["input_ids"], encoded["attention_mask"], None
    owner, count = torch.arange(len(prompts)), torch.full((len(prompts),), samples)
    text = torch.empty(len(prompts), 0, dtype=torch.long)
    for step in range(LONGEST):
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(ids, mask, position, cache, use_cache=True, logits_to_keep=1)
        cache, chances = output.past_key_values, output.logits[:, -1].softmax(-1)
        rows, count = _draw(chances, count).unique(return_counts=True)
        parent, token = rows // chances.shape[1], rows % chances.shape[1]
        owner, text = owner[parent], torch.cat([text[parent], token[:, None]], 1)
        over = (token == tokenizer.eos_token_id) | (step == LONGEST - 1)
        for i, response, times in zip(owner[over].tolist(), text[over].tolist(), count[over].tolist(), strict=True):
            found[i][tuple(response)] += times
        if over.all():
            break
        owner, text, count, ids = owner[~over], text[~over], count[~over], token[~over, None]
        cache.reorder_cache(parent[~over])
        mask = torch.cat([mask[parent[~over]], torch.ones_like(ids)], 1)
    return found


def _draw(chances: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """``count`` tokens for each row of ``chances``, as row × width + token."""
    cumulative = chances.double().cumsum(1)
    edges = cumulative / cumulative[:, -1:] + torch.arange(len(count))[:, None]  # rising through all rows
    places = torch.arange(len(count)).repeat_interleave(count) + torch.rand(int(count.sum()), dtype=torch.float64)
    return torch.searchsorted(edges.flatten(), places, right=True).clamp(max=edges.numel() - 1)


def right(tokenizer: Any, problem: Problem, response: tuple[int, ...]) -> bool:
    """The verifier."""
    text = tokenizer.decode(response, skip_special_tokens=True)
    return compute_score(PREFIX + problem["family"], text, problem["answer"])["acc"] == 1.0


def successes(tokenizer: Any, asked: list[Problem], found: list[Counter]) -> list[int]:
    """Correct samples of each prompt."""
    pairs = zip(asked, found, strict=True)
    return [sum(n for r, n in counter.items() if right(tokenizer, problem, r)) for problem, counter in pairs]


@torch.no_grad()
def log_likelihood(model: Qwen3ForCausalLM, prompts: list[list[int]], responses: list[tuple[int, ...]]) -> list[float]:
    """Of each response, summed over its tokens, in nats: one forward pass a prompt."""
    whole = [torch.tensor([*p, *r]) for p, r in zip(prompts, responses, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)  # padding on the right, which is never looked at
    chances = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    spans = zip(chances, prompts, responses, strict=True)
    return [float(row[len(p) - 1 : len(p) + len(r) - 1].sum()) for row, p, r in spans]


def laboratory(seeds: range) -> Iterator[dict[str, Any]]:
    """What is known of each prompt, a row each; a seed is that of a student, of its training and of the prompts.

    ``outcomes`` are those of K + TRUTH samples, in random order: how often each response came says no order.
    ``log_likelihood`` is the student's, in nats, of the stored response: a right one of the teacher's, if there is one.
    """
    tokenizer = make_tokenizer(TEACHERS, TeacherContext())
    teachers = {family: _new(tokenizer, TEACHER, seed=0) for family in TEACHERS}
    for family, teacher in teachers.items():
        learn(teacher, tokenizer, {family: TEACHERS[family]}, TEACHER, FRESH, set())
    for seed in seeds:
        asked = {name: draw_prompts(regime, seed) for name, regime in REGIMES.items()}
        questions = {problem["question"] for part in asked.values() for problem in part}
        for student, (families, stages) in STUDENTS.items():
            model = _new(tokenizer, STUDENT, seed)
            for index, (stage, loss) in enumerate(stages.items()):
                fresh = FRESH + 10 * seed + index + 1
                learn(model, tokenizer, families, replace(STUDENT, until=loss), fresh, questions)
                for name, regime in REGIMES.items():
                    if (regime.student, regime.stage) == (student, stage):
                        for row in _measure(asked[name], model, teachers, tokenizer, seed):
                            yield {"regime": name, "seed": seed} | row


def _new(tokenizer: PreTrainedTokenizerFast, learner: Learner, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return make_model(tokenizer, learner)


def _measure(
    asked: list[Problem], student: Qwen3ForCausalLM, teachers: dict[str, Qwen3ForCausalLM], tokenizer: Any, seed: int
) -> Iterator[dict[str, Any]]:
    """The rows of one student's prompts."""
    rng, prompts = np.random.default_rng(seed), prompt_ids(tokenizer, asked)
    correct = successes(tokenizer, asked, sample(student, tokenizer, prompts, K + TRUTH))
    taught = _teach(asked, prompts, teachers, tokenizer)
    stored = [_store(tokenizer, problem, counter, rng) for problem, counter in zip(asked, taught, strict=True)]
    likelihood, reliable = log_likelihood(student, prompts, stored), successes(tokenizer, asked, taught)
    for i, problem in enumerate(asked):
        yield {
            "family": problem["family"],
            "prompt_tokens": len(prompts[i]),
            "response_tokens": len(stored[i]),
            "log_likelihood": likelihood[i],
            "teacher_correct": reliable[i],
            "outcomes": rng.permutation(np.arange(K + TRUTH) < correct[i]).tolist(),
        }


def _teach(asked: list[Problem], prompts: list[list[int]], teachers: dict[str, Any], tokenizer: Any) -> list[Counter]:
    """TEACHER_SAMPLES responses to each prompt, by the teacher of its family."""
    found: dict[int, Counter] = {}
    for family, teacher in teachers.items():
        where = [i for i, problem in enumerate(asked) if problem["family"] == family]
        answered = sample(teacher, tokenizer, [prompts[i] for i in where], TEACHER_SAMPLES)
        found |= dict(zip(where, answered, strict=True))
    return [found[i] for i in range(len(asked))]


def _store(tokenizer: Any, problem: Problem, found: Counter, rng: np.random.Generator) -> tuple[int, ...]:
    """One of the responses, a right one if there is one."""
    good = [response for response in found if right(tokenizer, problem, response)]
    choices = good or list(found)
    return choices[rng.integers(len(choices))]
