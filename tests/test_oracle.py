"""The plugin's functions against ``examples/paced_minimal.py``, which follows the paper's formulas the plainest way."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from paced_verl.divergence import token_divergence
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.training.loss import paced_loss
from tests.batches import (
    PACED,
    SCHEDULE,
    TOPK,
    VOCAB,
    Row,
    actor_config,
    call,
    distillation_config,
    make_rows,
    micro_batch,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "paced_minimal.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paced_minimal", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle: Any = _load()

# Every count of 1, 4, 8 and 16 samples, zeros and full marks included.
SAMPLES = np.concatenate([np.full(n + 1, n) for n in (1, 4, 8, 16)])
SUCCESSES = np.concatenate([np.arange(n + 1) for n in (1, 4, 8, 16)])


def tensor(counts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(counts).double()


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (1, 3), (2, 1), (0.5, 0.5), (0.3, 2.5), (0, 1), (0, 0)])
def test_empirical_weights(alpha: float, beta: float) -> None:
    expected = oracle.weights(tensor(SUCCESSES), tensor(SAMPLES), alpha, beta)
    np.testing.assert_allclose(Kernel(alpha=alpha, beta=beta)(SUCCESSES, SAMPLES), expected, rtol=1e-14)


def test_hard_filter_and_uniform_weights() -> None:
    k, n = tensor(SUCCESSES), tensor(SAMPLES)
    np.testing.assert_array_equal(Kernel("hard_filter")(SUCCESSES, SAMPLES), oracle.hard_filter(k, n))
    np.testing.assert_array_equal(Kernel("uniform")(SUCCESSES, SAMPLES), oracle.weights(k, n, 0, 0))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (2, 0.5), (0, 3), (-0.25, 1)])
@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.5, 0.5), (0.3, 2.0), (7.0, 4.0)])
def test_posterior_weights(prior: tuple[float, float], alpha: float, beta: float) -> None:
    k, n = np.array([0, 1, 4, 7, 8, 0, 1.5]), np.array([8, 8, 8, 8, 8, 0, 2.5])  # decayed counts are fractions
    kernel = Kernel(alpha=alpha, beta=beta, estimate="posterior", prior=prior)
    expected = [oracle.posterior_weight(*counts, *prior, alpha, beta) for counts in zip(k, n, strict=True)]
    np.testing.assert_allclose(kernel(k, n), expected, rtol=1e-9)


def observed(successes: np.ndarray, samples: np.ndarray) -> PassRateTable:
    table = PassRateTable(len(samples))
    table.observe(np.arange(len(samples)), successes, samples, step=0)
    return table


@pytest.mark.parametrize("kernel", [Kernel(), Kernel(alpha=1, beta=3), Kernel("hard_filter"), Kernel("uniform")])
def test_loss_weights_of_the_sampler_are_divided_by_the_mean_over_all_prompts(kernel: Kernel) -> None:
    sampler = PassRateSampler(observed(SUCCESSES, SAMPLES), kernel, power=0.0, skip_zero_weight=False)
    k, n = tensor(SUCCESSES), tensor(SAMPLES)
    raw = {
        "beta": oracle.weights(k, n, kernel.alpha, kernel.beta),
        "hard_filter": oracle.hard_filter(k, n),
        "uniform": oracle.weights(k, n, 0, 0),
    }[kernel.name]
    loss_weights = sampler.loss_weights(np.arange(len(SAMPLES)))
    np.testing.assert_allclose(loss_weights, oracle.normalise(raw), rtol=1e-6)  # the plugin keeps float32
    np.testing.assert_array_equal(loss_weights == 0, raw == 0)


def test_all_zero_weights_are_an_error_in_both() -> None:
    k, n = np.array([0, 8]), np.array([8, 8])
    with pytest.raises(ValueError, match="every problem has weight 0"):
        oracle.normalise(oracle.weights(tensor(k), tensor(n)))
    with pytest.raises(ValueError, match="every prompt has weight 0"):
        PassRateSampler(observed(k, n), Kernel())


def expected_kl(teacher: torch.Tensor, student: torch.Tensor, k: int, divergence: str) -> torch.Tensor:
    if k == teacher.shape[-1]:
        return getattr(oracle, divergence)(teacher, student)
    return oracle.topk_tail_kl(teacher, student, k, divergence.removesuffix("_kl"))


@pytest.mark.parametrize("scale", [1.0, 6.0])  # at 6 nearly all mass is on one token
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_divergences_and_their_gradients(divergence: str, k: int, scale: float) -> None:
    """Top-k + tail; the full vocabulary at k = V = 40."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = scale * torch.randn(2, 12, 40, dtype=torch.float64, generator=generator)
    weight = torch.rand(12, dtype=torch.float64, generator=generator)
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()

    log_probs, ids = teacher.log_softmax(-1).topk(k)
    value = token_divergence(mine, ids, log_probs, divergence).value
    expected = expected_kl(teacher, theirs, k, divergence)
    (value * weight).sum().backward()
    (expected * weight).sum().backward()

    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_the_oracle_is_right_about_distributions_worked_out_by_hand() -> None:
    teacher = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    student = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64).log()
    ln2 = math.log(2)
    assert oracle.forward_kl(teacher, student).item() == pytest.approx(0.25 * ln2)  # .5 ln 2 + 0 − 2 · .125 ln 2
    assert oracle.reverse_kl(teacher, student).item() == pytest.approx(0.25 * ln2)  # −.25 ln 2 + 0 + 2 · .25 ln 2
    tail = 0.5 * ln2 + 0.5 * math.log(0.5 / 0.75)
    assert oracle.topk_tail_kl(teacher, student, 1).item() == pytest.approx(tail)
    assert oracle.posterior_weight(0, 8) == pytest.approx(1 / 10 * 9 / 11)  # mean of p (1−p) under Beta(1, 9)


def teacher_rows(k: int) -> tuple[list[Row], list[torch.Tensor]]:
    """Rows with weights from counts and the top k of teachers whose whole logits come beside them."""
    generator = torch.Generator().manual_seed(3)
    rows = make_rows(8)
    successes, samples = np.array([4, 0, 1, 7, 8, 5, 2, 6]), np.full(8, 8)
    sampler = PassRateSampler(observed(successes, samples), Kernel(), skip_zero_weight=False)
    loss_weights = sampler.loss_weights(np.arange(8))
    teachers = [2 * torch.randn(len(row.teacher_ids), VOCAB, generator=generator).double() for row in rows]
    for i, teacher in enumerate(teachers):
        log_probs, ids = teacher.log_softmax(-1).topk(k)
        rows[i] = replace(
            rows[i], teacher_ids=ids.int(), teacher_logprobs=log_probs.float(), weight=float(loss_weights[i])
        )
    expected = oracle.normalise(oracle.weights(tensor(successes), tensor(samples)))
    assert [row.weight for row in rows] == pytest.approx(expected.tolist(), rel=1e-6)
    return rows, teachers


@pytest.mark.parametrize("k", [TOPK, VOCAB])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_the_weighted_loss_of_a_batch_and_its_gradient(mode: str, k: int) -> None:
    """From counts to the gradient: the plugin on packed micro-batches in float32, the example on one padded batch."""
    rows, teachers = teacher_rows(k)
    lengths = [len(teacher) for teacher in teachers]
    student = torch.randn(sum(lengths), VOCAB, generator=torch.Generator().manual_seed(4))

    mine = student.clone().requires_grad_()
    per_row = mine.split(lengths)
    loss_fn = partial(
        paced_loss, config=actor_config(mode), distillation_config=distillation_config(), paced=PACED, schedule=SCHEDULE
    )
    total = 0.0
    for part in (slice(0, 3), slice(3, 8)):
        loss, _ = call(loss_fn, torch.cat(per_row[part]), micro_batch(rows[part], rows))
        loss.backward()
        total += loss.item()

    theirs = student.double().requires_grad_()
    # The logits that predict the response: from the last token of the prompt to the last but one.
    spans = [slice(len(row.prompt) - 1, length - 1) for row, length in zip(rows, lengths, strict=True)]
    padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    student_logits = padded([logits[span] for logits, span in zip(theirs.split(lengths), spans, strict=True)])
    teacher_logits = padded([logits[span] for logits, span in zip(teachers, spans, strict=True)])
    token_kls = torch.where(
        torch.tensor([SCHEDULE.stages[row.stage].divergence == "forward_kl" for row in rows])[:, None],
        expected_kl(teacher_logits, student_logits, k, "forward_kl"),
        expected_kl(teacher_logits, student_logits, k, "reverse_kl"),
    )
    mask = padded([row.mask for row in rows])
    weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
    expected = oracle.paced_loss(token_kls, mask, weights, mode)
    expected.backward()

    assert total == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)


def test_the_verifier_of_the_example() -> None:
    end, blank = oracle.END, oracle.BLANK
    solution = torch.tensor([[3, 1, 2, end, blank, blank]])
    responses = torch.tensor(
        [
            [3, 1, 2, end, 5, end],  # what follows the end does not matter
            [3, 1, end, end, blank, blank],  # too short
            [3, 1, 2, 2, end, blank],  # too long
            [3, 1, 2, blank, blank, blank],  # no end
        ]
    )
    assert oracle.is_correct(responses, solution.expand(4, -1)).tolist() == [True, False, False, False]
    assert oracle.response_mask(responses).sum(1).tolist() == [4, 3, 5, 6]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the example sets it on the command line: tensors this small are many times slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    measured = oracle.run(steps=4, problems=64, teacher_steps=10, student_steps=80)
    assert len(measured["loss"]) == 4
    assert np.isfinite(measured["loss"]).all()
    assert len(measured["accuracy"]) == len(measured["pass_rates"]) == 3
    for values in (measured["accuracy"], *measured["pass_rates"]):
        assert all(0 <= value <= 1 for value in values)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-3:]] == ["before", "between", "after"]
    assert np.isfinite([float(number) for line in printed[-3:] for number in line.split()[1:]]).all()
