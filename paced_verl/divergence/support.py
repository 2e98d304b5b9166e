"""Student log-probabilities on the teacher's k tokens and on all the others, straight from the logits.

A divergence over the teacher's top-k needs k+1 numbers a token, whereas ``log_softmax`` over the vocabulary makes V of
them, in float32, twice (forward and backward). Here the vocabulary is only ever seen one chunk at a time. With
``rest`` = logsumexp of the logits outside the teacher's k ids, the k+1 categories are

    support_log_probs = log_softmax([z_ids, rest]),        d rest / d z_v = softmax(z outside ids)_v

so this module computes ``rest`` and its gradient, and ordinary autograd does everything after it, for any divergence.
``rest`` comes from a sum that leaves the ids out, not from 1 − Σ: a tail of 1e-12 is as exact as one of 0.3.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Index = slice | torch.Tensor

# Bytes of scratch: on a CPU a chunk that stays in cache between operations, and is still large enough that starting the
# threads costs little; on a GPU one that fills the machine, and is small beside the logits.
CPU_CHUNK_BYTES = 4 << 20
CUDA_CHUNK_BYTES = 256 << 20
SAMPLE = 1024  # tokens of a row, more than a teacher's top-k


def support_log_probs(logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities of the k+1 categories "token ids_1, …, token ids_k, any other token".

    Args:
        logits: (n, V), any floating dtype, the whole vocabulary; strides are free. Contiguous is fastest.
        ids: (n, k), any integer dtype, in [0, V). Repeated ids in a row (padding) give finite values that mean nothing.
        rows: (m,) integers, distinct positions to use; the others cost nothing and get a zero gradient. None: all n.

    Returns:
        (m, k+1), float32 (float64 for float64 logits). The last column, the tail, is −inf where the row has no
        probability left (k = V); a token with logit −inf has −inf. Neither makes the gradient NaN.

    Raises:
        ValueError: if the shapes do not match.

    Besides the logits, memory is a float32 chunk (with ``rows`` also its source, in the logits' dtype), tensors of
    (m, k+1) and, in backward, the gradient in the logits' dtype. On a GPU with Triton there is no chunk.
    Differentiable once. Backward reads the logits again, so nothing may overwrite them before it, unseen by autograd,
    as flash-attn's cross-entropy does with ``inplace_backward=True``.
    """
    if logits.ndim != 2 or ids.ndim != 2 or len(logits) != len(ids):
        raise ValueError(f"want logits (n, V) and ids (n, k), got {tuple(logits.shape)} and {tuple(ids.shape)}")
    if rows is not None:
        rows = rows.long()  # a kernel multiplies them by the row stride: n · V may be above 2^31
        ids = ids[rows]
    return torch.log_softmax(_CategoryLogits.apply(logits, ids.long(), rows), dim=-1)


class _CategoryLogits(torch.autograd.Function):
    """(n, V) logits → (m, k+1) ``[z_ids, rest]``."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        rest = _rest_logsumexp(logits, ids, rows)
        ctx.save_for_backward(logits, ids, rows, rest)
        top = logits[_all_rows(logits, rows), ids].to(rest.dtype)
        return torch.cat([top, rest.unsqueeze(1)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, ids, rows, rest = ctx.saved_tensors
        grad_top, grad_rest = grad[:, :-1], grad[:, -1]
        # Nothing is left to move where the rest is empty, whatever the loss says about its −inf.
        grad_rest = grad_rest.masked_fill(rest == -torch.inf, 0.0)
        grad_logits = _rest_gradient(logits, ids, rows, rest, grad_rest)
        grad_logits[_all_rows(logits, rows), ids] = grad_top.to(logits.dtype)
        return grad_logits, None, None


def _all_rows(logits: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(m, 1) row numbers, to index the logits together with (m, k) ids."""
    return (torch.arange(len(logits), device=logits.device) if rows is None else rows).unsqueeze(1)


def _rest_logsumexp(logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(m,) logsumexp over the tokens outside ids, −inf where there is none."""
    if _has_kernel(logits):
        from paced_verl.divergence import fused

        return fused.rest_logsumexp(logits, ids, rows)
    rest = []
    for chunk, here in _chunks(logits, ids, rows):
        chunk.scatter_(1, ids[here], -torch.inf)
        # log_softmax is one fused pass, where logsumexp takes four and a second chunk. It moves every token of a row by
        # the same amount, which is read off the largest of the first few, unless all of these are −inf.
        sample = chunk[:, :SAMPLE] if (chunk[:, :SAMPLE].amax(dim=1) > -torch.inf).all() else chunk
        largest = sample.amax(dim=1)
        torch.log_softmax(chunk, dim=1, out=chunk)
        rest.append(torch.where(largest == -torch.inf, largest, largest - sample.amax(dim=1)))
    return torch.cat(rest) if rest else logits.new_empty(0, dtype=compute_dtype(logits))


def _rest_gradient(
    logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None, rest: torch.Tensor, grad_rest: torch.Tensor
) -> torch.Tensor:
    """(n, V) in the logits' dtype: grad_rest (m,) spread over the tokens outside ids; zero in unused rows.

    What it leaves at the ids is for the caller to overwrite.
    """
    if _has_kernel(logits):
        from paced_verl.divergence import fused

        return fused.rest_gradient(logits, ids, rows, rest, grad_rest)
    grad_logits = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
    # Where no token is left outside the ids, grad_rest is 0, and exp(−inf) is too.
    rest = torch.where(rest == -torch.inf, torch.inf, rest).unsqueeze(1)
    for here in _places(logits, len(ids)):
        there: Index = here if rows is None else rows[here]
        whole = isinstance(there, slice) and logits.dtype == rest.dtype
        chunk = torch.sub(logits[there], rest[here], out=grad_logits[there] if whole else None)
        chunk.exp_().mul_(grad_rest[here].unsqueeze(1))
        if not whole:
            grad_logits[there] = chunk.to(logits.dtype)
    return grad_logits


def _chunks(logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, slice]]:
    """Copies of some rows in the computing dtype, all in one buffer; their places in ids."""
    buffer: torch.Tensor | None = None
    for here in _places(logits, len(ids)):
        if buffer is None:
            buffer = torch.empty(here.stop, logits.shape[1], dtype=compute_dtype(logits), device=logits.device)
        yield buffer[: here.stop - here.start].copy_(logits[here if rows is None else rows[here]]), here


def _places(logits: torch.Tensor, rows: int) -> Iterator[slice]:
    """So many rows in parts, each a chunk in the computing dtype."""
    row_bytes = logits.shape[1] * compute_dtype(logits).itemsize
    fitting = (CUDA_CHUNK_BYTES if logits.is_cuda else CPU_CHUNK_BYTES) // row_bytes
    size = max(1, fitting, torch.get_num_threads())  # a softmax gives each thread whole rows
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def compute_dtype(logits: torch.Tensor) -> torch.dtype:
    """What logits are computed with: float32, or float64 if they are."""
    return torch.promote_types(logits.dtype, torch.float32)


def _has_kernel(logits: torch.Tensor) -> bool:
    usable = logits.is_cuda and logits.dtype != torch.float64 and logits.stride(1) == 1
    return usable and importlib.util.find_spec("triton") is not None
