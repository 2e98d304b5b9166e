"""Token-level divergences between a teacher's top-k and a student's logits: no ray, no verl, any notebook."""

from typing import Any, NamedTuple

import torch

from paced_verl.divergence.functions import (
    forward_kl,
    get_divergence,
    register_divergence,
    reverse_kl,
    teacher_categories,
)
from paced_verl.divergence.support import support_log_probs

__all__ = [
    "TokenDivergence",
    "get_divergence",
    "register_divergence",
    "support_log_probs",
    "teacher_categories",
    "token_divergence",
]


class TokenDivergence(NamedTuple):
    """One number a token, (m,) each, float32 (float64 for float64 logits). Only ``value`` has a gradient."""

    value: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    student_tail: torch.Tensor  # probability outside the teacher's k tokens
    teacher_tail: torch.Tensor


def token_divergence(
    logits: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    divergence: str = "forward_kl",
    rows: torch.Tensor | None = None,
    **params: Any,
) -> TokenDivergence:
    """Divergence of each token between the student's logits and the teacher's k tokens + tail, in nats.

    Args:
        logits: (n, V) student logits at the temperature of the teacher's log-probabilities, any floating dtype.
        teacher_ids: (n, k), any integer dtype.
        teacher_log_probs: (n, k), any floating dtype, normalised over the whole vocabulary. No gradient.
        divergence: a registered name.
        rows: (m,) int64, positions of the n that count; the others cost nothing and get a zero gradient. None: all.
        params: of the divergence, such as ``beta`` of ``jsd``.

    Raises:
        ValueError: unknown divergence, or shapes that do not match.
    """
    function = get_divergence(divergence)
    if teacher_ids.shape != teacher_log_probs.shape:
        shapes = f"{tuple(teacher_ids.shape)} and {tuple(teacher_log_probs.shape)}"
        raise ValueError(f"teacher ids and log-probabilities differ in shape: {shapes}")
    student = support_log_probs(logits, teacher_ids, rows)
    teacher = teacher_categories(
        teacher_log_probs.detach() if rows is None else teacher_log_probs.detach()[rows], vocab_size=logits.shape[1]
    )
    value = function(student, teacher, **params)
    with torch.no_grad():
        return TokenDivergence(
            value=value,
            forward_kl=forward_kl(student, teacher),
            reverse_kl=reverse_kl(student, teacher),
            student_tail=student[:, -1].exp(),
            teacher_tail=teacher[:, -1].exp(),
        )
