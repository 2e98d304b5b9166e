"""What a tiny student's success really is: its tree of responses, likeliest first, until hardly any is left."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

AT_ONCE = 64
"""Prefixes that are extended in one pass."""


@dataclass(frozen=True)
class Bounds:
    """Success lies between; what is between has not been looked at."""

    low: float
    high: float


@torch.no_grad()
def success(
    model: Any,
    vocabulary: int,
    prompt: Sequence[int],
    begun: Sequence[int],
    ends: frozenset[int],
    length: int,
    correct: Callable[[Sequence[int]], bool],
    left: float = 1e-3,
    most: int = 20_000,
) -> Bounds:
    """Bounds of the probability that a response that begins with ``begun`` is correct.

    Args:
        model: A transformers model.
        vocabulary: Tokens that can be said: those of the tokenizer, as verl's servers have it.
        prompt, begun: Token ids.
        ends: Tokens that end a response.
        length: Tokens of a response at most; one that is cut off there fails.
        correct: The verifier.
        left: Probability that may be left.
        most: Prefixes that are extended at most.
    """
    if begun and begun[-1] in ends:
        value = float(correct(begun))
        return Bounds(value, value)
    queue: list[tuple[float, tuple[int, ...]]] = [(0.0, tuple(begun))]
    found, open_, extended = 0.0, 1.0, 0
    while queue and open_ > left and extended < most:
        chosen = [heapq.heappop(queue) for _ in range(min(AT_ONCE, len(queue)))]
        chosen = _of_one_length(chosen, queue)
        extended += len(chosen)
        inputs = torch.tensor([[*prompt, *tokens] for _, tokens in chosen])
        log_probs = model(inputs).logits[:, -1, :vocabulary].double().log_softmax(-1)
        for (minus, tokens), row in zip(chosen, log_probs, strict=True):
            for token, log_prob in enumerate(row.tolist()):
                chance, extension = math.exp(log_prob - minus), (*tokens, token)
                if token in ends:
                    found += chance * correct(extension)
                    open_ -= chance
                elif len(extension) >= length:
                    open_ -= chance
                elif chance > left * 1e-4:
                    heapq.heappush(queue, (minus - log_prob, extension))
    return Bounds(found, min(1.0, found + max(0.0, open_)))


def _of_one_length(
    chosen: list[tuple[float, tuple[int, ...]]], queue: list[tuple[float, tuple[int, ...]]]
) -> list[tuple[float, tuple[int, ...]]]:
    """Those as long as the likeliest, so that no padding is needed; the others go back."""
    length = len(chosen[0][1])
    for each in chosen:
        if len(each[1]) != length:
            heapq.heappush(queue, each)
    return [each for each in chosen if len(each[1]) == length]
