"""What is trained and what is reported of two (m, C) tensors of log-probabilities, wherever they came from."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from paced_verl.divergence.functions import entropy, forward_kl, get_divergence, reverse_kl

Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``f(student, teacher, mix) -> (m,)``, of (m, C) log-probabilities whose last column is the tail."""


class TokenDivergence(NamedTuple):
    """One number a token, (m,) each, float32 (float64 for float64 logits). Only ``value`` has a gradient."""

    value: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    student_tail: torch.Tensor  # probability outside the teacher's k tokens; 0 over the whole vocabulary
    teacher_tail: torch.Tensor
    student_entropy: torch.Tensor  # nats, over the categories: k tokens and the tail, or the whole vocabulary


def objective(divergence: str, towards: str | None, mix: torch.Tensor | None, tokens: int, params: Any) -> Objective:
    """A registered divergence, or (1−mix) of it + mix of another.

    Raises:
        ValueError: unknown name; ``towards`` without ``mix`` or the reverse; ``towards`` with ``params``; a ``mix``
            that is not one number for each of the ``tokens``.
    """
    start = functools.partial(get_divergence(divergence), **params)
    if (towards is None) != (mix is None):
        raise ValueError(
            f"towards and mix go together, got towards={towards!r} {'without' if mix is None else 'and'} mix"
        )
    if towards is None or mix is None:
        return lambda student, teacher, _: start(student, teacher)
    if params:
        raise ValueError(f"parameters belong to one divergence: towards={towards!r} takes none, got {sorted(params)}")
    if mix.shape != (tokens,):
        raise ValueError(f"want mix ({tokens},), one number a selected row, got {tuple(mix.shape)}")
    end = get_divergence(towards)

    def interpolated(student: torch.Tensor, teacher: torch.Tensor, mix: torch.Tensor | None) -> torch.Tensor:
        assert mix is not None
        at_start, at_end = start(student, teacher), end(student, teacher)
        share = mix.detach().to(at_start.dtype)
        return (1 - share) * at_start + share * at_end

    return interpolated


@torch.no_grad()
def described(value: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> TokenDivergence:
    """The value of the objective beside what is reported of the same log-probabilities."""
    return TokenDivergence(
        value=value,
        forward_kl=forward_kl(student, teacher),
        reverse_kl=reverse_kl(student, teacher),
        student_tail=student[:, -1].exp(),
        teacher_tail=teacher[:, -1].exp(),
        student_entropy=entropy(student),
    )
