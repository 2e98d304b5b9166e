"""Triton kernels of ``support``: forward reads the logits once, backward reads them once and writes the gradient once.

Same values and edge cases as the plain torch path of ``support``, for float32, bfloat16 and float16 logits whose rows
are contiguous. No scratch memory of the vocabulary's size.

Memory is read and written 16 bytes at a time, whatever the vocabulary: where it is no multiple of 16 bytes, rows begin
anywhere. A program therefore begins at the multiple of 16 bytes before its row, and forgets the few tokens of the row
before; at the end it may read the rest of its last 16 bytes, which lie in the same page of memory, and forgets them,
too. It writes so only where all of a block is its own.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096
WARPS = 8
NO_ID = 2**31 - 1  # past any vocabulary


def rest_logsumexp(logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(m,) float32 logsumexp over the tokens outside ids (m, k), −inf where there is none."""
    rest = torch.empty(len(ids), dtype=torch.float32, device=logits.device)
    ascending = torch.nn.functional.pad(ids.sort(dim=1).values, (0, 1), value=NO_ID).int()
    if len(ids):
        args = logits, logits.stride(0), _rows(logits, rows), ascending, ascending.shape[1], rest, logits.shape[1]
        with torch.cuda.device_of(logits):
            _rest_logsumexp_kernel[(len(ids),)](*args, BLOCK, _lane(logits), num_warps=WARPS)
    return rest


def rest_gradient(
    logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor | None, rest: torch.Tensor, grad_rest: torch.Tensor
) -> torch.Tensor:
    """(n, V) in the logits' dtype: grad_rest (m,) spread over the tokens; what is left at the ids means nothing."""
    vocab = logits.shape[1]
    grad_logits = (torch.empty if rows is None else torch.zeros)(logits.shape, dtype=logits.dtype, device=logits.device)
    if len(ids):
        lane = _lane(logits)
        if (logits.stride(0) - vocab) % lane:
            lane = 1  # a row of the gradient begins elsewhere in its 16 bytes than the row of the logits
        args = logits, logits.stride(0), _rows(logits, rows), rest, grad_rest.contiguous(), grad_logits, vocab
        with torch.cuda.device_of(logits):
            _rest_gradient_kernel[(len(ids), triton.cdiv(vocab + lane - 1, BLOCK))](*args, BLOCK, lane, num_warps=WARPS)
    return grad_logits


def _rows(logits: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return torch.arange(len(logits), device=logits.device) if rows is None else rows.contiguous()


def _lane(logits: torch.Tensor) -> int:
    """Tokens in 16 bytes; 1 where the tensor itself does not begin at a multiple of them."""
    return 16 // logits.element_size() if logits.data_ptr() % 16 == 0 else 1


@triton.jit
def _rest_logsumexp_kernel(  # type: ignore[no-untyped-def] # Triton gives annotations a meaning of its own
    logits, row_stride, rows, ascending, ids_stride, rest, vocab, BLOCK: tl.constexpr, LANE: tl.constexpr
):
    """One row a program. ``ascending`` (m, k+1): sorted ids, then NO_ID; each id is met once, in its own block."""
    i = tl.program_id(0).to(tl.int64)
    begin = tl.load(rows + i) * row_stride
    shift = (begin % LANE).to(tl.int32)  # tokens of the row before that share the first 16 bytes
    z = logits + tl.multiple_of(begin - shift, LANE)
    lanes = (vocab + shift + LANE - 1) // LANE
    upcoming = ascending + i * ids_stride
    skip = tl.load(upcoming)
    largest = -3.4028234663852886e38  # not −inf: −inf − −inf would be NaN in a block of masked logits
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab + shift, BLOCK):
        at = start + tl.arange(0, BLOCK)
        v = at - shift
        x = tl.load(z + at, mask=at // LANE < lanes, other=-float("inf")).to(tl.float32)
        x = tl.where((v >= 0) & (v < vocab), x, -float("inf"))
        while skip < start + BLOCK - shift:
            x = tl.where(v == skip, -float("inf"), x)
            upcoming += 1
            skip = tl.load(upcoming)
        larger = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        largest = larger
    tl.store(rest + i, largest + tl.log(tl.sum(total, axis=0)))


@triton.jit
def _rest_gradient_kernel(  # type: ignore[no-untyped-def]
    logits, row_stride, rows, rest, grad_rest, grad_logits, vocab, BLOCK: tl.constexpr, LANE: tl.constexpr
):
    """One block of one row a program: grad_rest · softmax(rest)."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i)
    begin = row * row_stride
    shift = (begin % LANE).to(tl.int32)
    first = tl.program_id(1) * BLOCK
    at = first + tl.arange(0, BLOCK)
    v = at - shift
    lanes = (vocab + shift + LANE - 1) // LANE
    x = tl.load(logits + tl.multiple_of(begin - shift, LANE) + at, mask=at // LANE < lanes, other=0.0).to(tl.float32)
    lse = tl.load(rest + i)
    lse = tl.where(lse == -float("inf"), 0.0, lse)  # an empty rest: exp(−inf − 0) = 0, not NaN
    gradient = tl.exp(x - lse) * tl.load(grad_rest + i)
    target = grad_logits + tl.multiple_of(row * vocab - shift, LANE) + at
    if (first >= shift) & (first + BLOCK - shift <= vocab):
        tl.store(target, gradient)
    else:
        tl.store(target, gradient, mask=(v >= 0) & (v < vocab))
