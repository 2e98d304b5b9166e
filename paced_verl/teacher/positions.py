"""Which position of a sequence holds what the teacher says: plain tensors, no servers."""

from __future__ import annotations

import math

import torch

TopK = tuple[torch.Tensor, torch.Tensor]
"""Token ids (tokens, k) int32 and their log-probabilities (tokens, k) float32 of the token *after* each position."""


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
