"""Where a distillation loss would move the logits of a node: descent directions of the losses that train.

Arrays are float64 (U, m): nodes × tokens of the support. Each direction sums to 0 over a node's tokens: a shift of all
logits changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from paced_verl.divergence.functions import get_divergence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def descent_direction(student: FloatArray, teacher: FloatArray, divergence: str, **params: Any) -> FloatArray:
    """−∂D/∂logits of a registered divergence, by automatic differentiation of the function that trains.

    Args:
        student, teacher: (U, m) log-probabilities that sum to 1 over the support; −inf where there is no token.
        divergence: Its name, ``paced.schedule[i].divergence``.
        params: Of the divergence.

    Raises:
        PacedError: There is no divergence of that name.
    """
    # The last category of a divergence is the tail; a support that is the whole of a node has none.
    logits = torch.from_numpy(_with_tail(student)).requires_grad_()
    value = get_divergence(divergence)(logits.log_softmax(-1), torch.from_numpy(_with_tail(teacher)), **params)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return -gradient[:, :-1].numpy()


def _with_tail(log_probs: FloatArray) -> FloatArray:
    return np.pad(log_probs.astype(np.float64), ((0, 0), (0, 1)), constant_values=-np.inf)


def sampled_direction(student: FloatArray, teacher: FloatArray, said: IntArray) -> FloatArray:
    """(1{j = a} − p_j) log(q_a / p_a) of the token a that was said, (U,): what a policy gradient on the log-ratio does.

    Its expectation over a ~ p is the descent direction of reverse KL.
    """
    rows = np.arange(len(said))
    gain = teacher[rows, said] - student[rows, said]
    hit = np.zeros_like(student)
    hit[rows, said] = 1.0
    return np.asarray((hit - np.exp(student)) * gain[:, None])


def minillm_direction(student: FloatArray, teacher: FloatArray, to_go: FloatArray) -> FloatArray:
    """p_j (f_j − f̄) with f_j = log(q_j / p_j) − KL to go: the gradient of reverse KL over whole responses (MiniLLM).

    Args:
        student, teacher: (U, m) log-probabilities.
        to_go: (U, m) expected sum of log(p / q) over the tokens after j, the student going on.
    """
    p = np.exp(student)
    gain = np.where(p > 0, teacher - np.where(p > 0, student, 0.0), 0.0) - np.where(p > 0, to_go, 0.0)
    return np.asarray(p * (gain - np.sum(p * gain, axis=-1, keepdims=True)))


def dr_grpo_direction(ideal: FloatArray, group: int) -> FloatArray:
    """(1 − 1/G) g: what Dr. GRPO without length normalisation does in expectation, with G responses a group.

    A response's own reward is part of its group's mean, hence the factor.
    """
    return np.asarray((1 - 1 / group) * ideal)


def sharpened(student: FloatArray, power: float = 1.5) -> FloatArray:
    """q ∝ p^power: a teacher that knows nothing but is surer of everything."""
    return np.asarray(log_softmax(student * power, axis=-1))


def suppressing(student: FloatArray, rare: float = 0.1) -> FloatArray:
    """q ∝ p e^{−1[p < rare]}: under reverse KL, a constant negative advantage on rare tokens (arXiv 2608.31046)."""
    return np.asarray(log_softmax(student - (np.exp(student) < rare), axis=-1))


def uniform(student: FloatArray) -> FloatArray:
    """q the same for every token of the support."""
    return np.asarray(log_softmax(np.where(np.isneginf(student), -np.inf, 0.0), axis=-1))


NULLS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "sharpen": sharpened,
    "suppress": suppressing,
    "uniform": uniform,
}
"""Teachers that know nothing of the problem: log-probabilities out of the student's own, (U, m) → (U, m)."""
