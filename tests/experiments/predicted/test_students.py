"""Sampling that shares beginnings, against the probabilities of whole responses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paced_verl.teacher.context import TeacherContext
from scripts.experiments.predicted import students
from scripts.experiments.predicted.regimes import ONE_LENGTH, Regime
from scripts.experiments.predicted.students import (
    STUDENT,
    draw_prompts,
    log_likelihood,
    right,
    sample,
    solution,
    stream,
)
from scripts.tiny_models import make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(ONE_LENGTH, TeacherContext())


def test_responses_come_as_often_as_they_are_probable(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(students, "LONGEST", 3)
    torch.manual_seed(0)
    model = make_model(tokenizer, STUDENT).eval()
    for weight in model.model.layers.parameters():
        weight.data *= 8 if weight.ndim > 1 else 1  # what comes next depends on all that came before
    model.model.norm.weight.data *= 15  # few tokens are probable
    prompts, samples = [[5, 6, 7, 8, 9], [40, 41]], 40_000  # the second is padded
    for prompt, found in zip(prompts, sample(model, tokenizer, prompts, samples), strict=True):
        assert found.total() == samples
        common = [response for response, times in found.most_common(30) if times > 50]
        assert len(common) > 5
        chances = np.exp(log_likelihood(model, [prompt] * len(common), common))
        times = np.array([found[response] for response in common])
        z = (times - samples * chances) / np.sqrt(samples * chances * (1 - chances))
        assert np.abs(z).max() < 4.5


def test_every_way_to_work_out_a_sum_is_right_and_all_orders_come(tokenizer) -> None:
    subtractions = (problem for problem in stream(ONE_LENGTH, 3) if "-" in problem["metadata"]["expression"])
    problem, rng = next(subtractions), np.random.default_rng(0)
    written = {solution(problem, rng) for _ in range(300)}
    assert len(written) == 7  # 3! orders, and the answer alone
    assert all(right(tokenizer, problem, tuple(tokenizer(text)["input_ids"])) for text in written)


def test_shuffled_labels_are_other_prompts_labels() -> None:
    plain, mixed = (draw_prompts(Regime(ONE_LENGTH, "", "", shuffled=share), seed=1) for share in (0.0, 0.5))
    assert [p["question"] for p in plain] == [p["question"] for p in mixed]
    assert sorted(p["answer"] for p in plain) == sorted(p["answer"] for p in mixed)
    changed = sum(a["answer"] != b["answer"] for a, b in zip(plain, mixed, strict=True))
    assert 0.4 * len(plain) < changed <= 0.5 * len(plain)
