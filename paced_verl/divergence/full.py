"""The divergence over the whole vocabulary, from the teacher's last hidden states.

A teacher that runs beside the student can hand over H numbers a token instead of V log-probabilities: its logits are
hidden @ headᵀ. They are made here for one chunk of tokens at a time, compared, and forgotten; backward makes them
again. Nothing of size (tokens, V) is kept, except the gradient of the student's logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from paced_verl.divergence.support import Index, compute_dtype
from paced_verl.divergence.tokens import Objective, TokenDivergence, described, objective

# Bytes of one float32 (chunk, V) tensor: large, because each chunk reads the whole head, yet small beside the logits.
CHUNK_BYTES = 128 << 20


def full_divergence(
    logits: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    divergence: str = "forward_kl",
    rows: torch.Tensor | None = None,
    *,
    towards: str | None = None,
    mix: torch.Tensor | None = None,
    chunk_tokens: int | None = None,
    **params: Any,
) -> TokenDivergence:
    """Divergence of each token between the student's logits and the teacher, over the whole vocabulary, in nats.

    The teacher's logits are hidden @ headᵀ and nothing else: no bias, no scale, no soft cap. Products are accumulated
    and kept in float32 (float64 for float64 student logits), whatever the dtype of hidden and head, and under autocast.

    One family often pads one vocabulary to several sizes. Ids past the student's V are no tokens: they are dropped
    before the teacher's softmax, which sums to 1 over the student's V. Ids past the teacher's V_t have probability 0 in
    it: log 0, which the registered divergences take for a finite number.

    Args:
        logits: (n, V) student logits at temperature 1, as the teacher's are; any floating dtype.
        teacher_hidden: (n, H) what the teacher's head reads (after the last norm), any floating dtype. No gradient.
        teacher_head: (V_t, H) weight of the teacher's head, any floating dtype. No gradient.
        divergence: a registered name.
        rows: (m,) int64, distinct positions that count; the others cost nothing and get a zero gradient. None: all.
        towards: a second registered name: the value is then (1−mix) · D_divergence + mix · D_towards.
        mix: (m,), any floating dtype, in [0, 1], one number a selected row. No gradient.
        chunk_tokens: tokens compared at a time; the result does not depend on it. None: as many as make a float32
            (chunk, V) tensor of ``CHUNK_BYTES``.
        params: of the divergence, such as ``beta`` of ``jsd``. Not with ``towards``.

    Returns:
        :class:`TokenDivergence`; both tails are 0.

    Raises:
        ValueError: unknown divergence, shapes that do not match, ``towards`` without ``mix`` or with ``params``.

    Besides the arguments, memory is (m,) numbers, 8 to 14 float32 (chunk, V) tensors at once, by divergence (a KL in
    forward 7, in backward 9), a float32 copy of some rows of the head where the device cannot multiply in its dtype and
    add in float32 (of ``CHUNK_BYTES``; any CPU), and, in backward, the gradient in the logits' dtype. Differentiable
    once. Backward reads all arguments again, so nothing may overwrite them before it.
    """
    shapes = [tuple(x.shape) for x in (logits, teacher_hidden, teacher_head)]
    if [len(shape) for shape in shapes] != [2, 2, 2] or shapes[0][0] != shapes[1][0] or shapes[1][1] != shapes[2][1]:
        raise ValueError(
            "want student logits (n, V), teacher hidden states (n, H) and a teacher head (V_t, H), got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"want chunk_tokens of 1 or more, or None, got {chunk_tokens}")
    trained = objective(divergence, towards, mix, len(logits) if rows is None else len(rows), params)
    size = chunk_tokens or max(1, CHUNK_BYTES // (logits.shape[1] * compute_dtype(logits).itemsize))
    head = teacher_head.detach()[: logits.shape[1]]
    return TokenDivergence(*_FullDivergence.apply(logits, teacher_hidden.detach(), head, rows, mix, trained, size))


class _FullDivergence(torch.autograd.Function):
    """(n, V) logits → the fields of :class:`TokenDivergence`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        head: torch.Tensor,
        rows: torch.Tensor | None,
        mix: torch.Tensor | None,
        trained: Objective,
        size: int,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(logits, hidden, head, rows, mix)
        ctx.trained, ctx.size = trained, size
        with torch.autocast(logits.device.type, enabled=False):
            chunks = [
                _compared(logits[there], hidden[there], head, trained, share)
                for _, there, share in _chunks(logits, rows, mix, size)
            ]
        fields = tuple(torch.cat(field) for field in zip(*chunks, strict=True))
        ctx.mark_non_differentiable(*fields[1:])
        return fields

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, hidden, head, rows, mix = ctx.saved_tensors
        grad_logits = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for here, there, share in _chunks(logits, rows, mix, ctx.size):
                grad_logits[there] = _gradient(logits[there], hidden[there], head, ctx.trained, share, grad[here])
        return grad_logits, None, None, None, None, None, None


def _chunks(
    logits: torch.Tensor, rows: torch.Tensor | None, mix: torch.Tensor | None, size: int
) -> Iterator[tuple[slice, Index, torch.Tensor | None]]:
    """Places among the m tokens, places in the logits, and the share of each; one empty chunk where there is none."""
    tokens = len(logits) if rows is None else len(rows)
    for start in range(0, max(tokens, 1), size):
        here = slice(start, min(start + size, tokens))
        yield here, here if rows is None else rows[here], None if mix is None else mix[here]


def _compared(
    logits: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor, trained: Objective, share: torch.Tensor | None
) -> TokenDivergence:
    student, teacher = _student_log_probs(logits), _teacher_log_probs(hidden, head, logits)
    return described(trained(student, teacher, share), student, teacher)


def _gradient(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    head: torch.Tensor,
    trained: Objective,
    share: torch.Tensor | None,
    grad: torch.Tensor,
) -> torch.Tensor:
    teacher = _teacher_log_probs(hidden, head, logits)
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        value = trained(_student_log_probs(logits), teacher, share)
    return torch.autograd.grad(value, logits, grad)[0]


def _student_log_probs(logits: torch.Tensor) -> torch.Tensor:
    """(c, V) → (c, V+1) log-probabilities in the computing dtype, the last column a tail of −inf."""
    log_probs = torch.log_softmax(logits, dim=-1, dtype=compute_dtype(logits))
    return torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf)


def _teacher_log_probs(hidden: torch.Tensor, head: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(c, H) → (c, V+1) as the student's; −inf for ids the head does not have."""
    dtype = compute_dtype(logits)
    columns = torch.full((len(hidden), logits.shape[1] + 1), -torch.inf, dtype=dtype, device=logits.device)
    block = max(1, CHUNK_BYTES // (head.shape[1] * dtype.itemsize))
    for start in range(0, len(head), block):
        weight = head[start : start + block]
        columns[:, start : start + len(weight)] = _product(hidden, weight, dtype)
    return torch.log_softmax(columns, dim=-1)


def _product(hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """hidden @ weightᵀ, not rounded to the dtype of its factors."""
    if hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype.itemsize == 2 and dtype == torch.float32:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return hidden.to(dtype) @ weight.to(dtype).t()
