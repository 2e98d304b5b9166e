"""What a teacher says of its logits, and which position of a sequence holds it: plain tensors, no servers."""

from __future__ import annotations

import math

import torch

from paced_verl.divergence import support_log_probs

CHUNK_BYTES = 256 << 20  # float32 logits that are sorted at once
TopK = tuple[torch.Tensor, torch.Tensor]
"""Token ids (tokens, k) int32 and their log-probabilities (tokens, k) float32 of the token *after* each position."""


def top_k(logits: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    """The k most probable tokens, their log-probabilities over the whole vocabulary, and that of all others together.

    Args:
        logits: (tokens, V), any floating dtype.
        k: How many.

    Returns:
        ``teacher_ids`` (tokens, k) int32, ``teacher_logprobs`` (tokens, k) float32 and ``teacher_tail`` (tokens,)
        float32: summed over the other logits, not 1 − Σ, so that a tail of 1e-12 is as exact as one of 0.3.
    """
    rows = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    ids = torch.cat([chunk.topk(k, dim=-1).indices for chunk in logits.split(rows)])
    log_probs = support_log_probs(logits, ids)
    return {"teacher_ids": ids.int(), "teacher_logprobs": log_probs[:, :k], "teacher_tail": log_probs[:, k]}


def in_vocabulary(ids: torch.Tensor, log_probs: torch.Tensor, size: int) -> TopK:
    """Give probability 0 to a teacher's ids that the student has no logit for.

    Models of one family pad one vocabulary to several sizes; such an id is no token of the tokenizer.

    Args:
        ids: (tokens, k) int32.
        log_probs: (tokens, k) float32.
        size: The student's number of logits.
    """
    ids, unknown = ids.clone(), ids >= size
    for row, column in unknown.nonzero().tolist():
        # Any id that the row lacks: one that is there twice would count its token twice.
        taken = set(ids[row].tolist())
        ids[row, column] = next(token for token in range(size) if token not in taken)
    return ids, log_probs.masked_fill(unknown, -math.inf)


def at_student_positions(response: TopK | None, length: int, response_length: int, topk: int) -> TopK:
    """The teacher's fields of a whole sequence of the student.

    Args:
        response: What the teacher predicts for each token of the response; ``None``: it was not asked.
        length: Tokens of the student's prompt and the response.
        response_length: Tokens of the response.
        topk: k.

    Returns:
        (length, k) int32 and float32. A position holds the distribution of the *next* token, so those of the response
        are the last ones but one; the others are not read by the loss and hold a valid distribution all the same.
    """
    ids = torch.arange(topk, dtype=torch.int32).repeat(length, 1)
    log_probs = torch.full((length, topk), -math.log(topk))
    if response is not None:
        place = response_positions(length, response_length)
        ids[place], log_probs[place] = response
    return ids, log_probs


def response_positions(length: int, response_length: int) -> slice:
    """Where a sequence predicts its response: the position before each of its tokens."""
    return slice(length - response_length - 1, length - 1)
