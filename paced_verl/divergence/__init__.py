"""Token-level divergences between a teacher and a student's logits: no ray, no verl, any notebook.

The teacher comes as its top-k log-probabilities (:func:`token_divergence`) or as its last hidden states
(:func:`full_divergence`, the whole vocabulary). Either way a divergence is a registered name, or a mixture of two.
"""

from typing import Any

import torch

from paced_verl.divergence.full import full_divergence
from paced_verl.divergence.functions import get_divergence, register_divergence, teacher_categories
from paced_verl.divergence.support import support_log_probs
from paced_verl.divergence.tokens import TokenDivergence, described, objective

__all__ = [
    "TokenDivergence",
    "full_divergence",
    "get_divergence",
    "register_divergence",
    "support_log_probs",
    "teacher_categories",
    "token_divergence",
]


def token_divergence(
    logits: torch.Tensor,
    teacher_ids: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    divergence: str = "forward_kl",
    rows: torch.Tensor | None = None,
    *,
    teacher_tail: torch.Tensor | None = None,
    towards: str | None = None,
    mix: torch.Tensor | None = None,
    **params: Any,
) -> TokenDivergence:
    """Divergence of each token between the student's logits and the teacher's k tokens + tail, in nats.

    Args:
        logits: (n, V) student logits at the temperature of the teacher's log-probabilities, any floating dtype.
        teacher_ids: (n, k), any integer dtype.
        teacher_log_probs: (n, k), any floating dtype, normalised over the whole vocabulary. No gradient.
        divergence: a registered name.
        rows: (m,) integers, positions of the n that count; the others cost nothing and get a zero gradient. None: all.
        teacher_tail: (n,) log-probability of all tokens but those k, any floating dtype, if the teacher says it: see
            :func:`teacher_categories`. No gradient.
        towards: a second registered name: the value is then (1−mix) · D_divergence + mix · D_towards.
        mix: (m,), any floating dtype, in [0, 1], one number a selected row. No gradient.
        params: of the divergence, such as ``beta`` of ``jsd``. Not with ``towards``.

    Raises:
        ValueError: unknown divergence, shapes that do not match, ``towards`` without ``mix`` or with ``params``.
    """
    if teacher_ids.shape != teacher_log_probs.shape:
        shapes = f"{tuple(teacher_ids.shape)} and {tuple(teacher_log_probs.shape)}"
        raise ValueError(f"teacher ids and log-probabilities differ in shape: {shapes}")
    trained = objective(divergence, towards, mix, len(logits) if rows is None else len(rows), params)
    student = support_log_probs(logits, teacher_ids, rows)
    log_probs, tail = teacher_log_probs.detach(), teacher_tail
    if rows is not None:
        log_probs, tail = log_probs[rows], None if tail is None else tail[rows]
    teacher = teacher_categories(log_probs, vocab_size=logits.shape[1], tail=tail)
    return described(trained(student, teacher, mix), student, teacher)
