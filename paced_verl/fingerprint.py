"""Short names of prompts, data sets and tokenizers: files made for others are noticed. No Ray, no verl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SPREAD = 64  # enough prompts for another order to show; hashing millions of them would delay every start


def prompt_hash(messages: Iterable[Mapping[str, Any]]) -> str:
    """A short hash of messages, the same in every process: of images and the like it knows the kind only."""
    contents = [[message["role"], message["content"]] for message in messages]
    return _hash(json.dumps(contents, default=lambda medium: type(medium).__name__))


def tokenizer_hash(tokenizer: Any) -> str:
    """Names a tokenizer by its vocabulary: equal where every id stands for the same token."""
    return _hash(json.dumps(sorted(tokenizer.get_vocab().items())))


def spread(items: Sequence[int]) -> list[int]:
    """At most 64 of a sequence, spread evenly over it, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(len(items), _SPREAD), dtype=int)
    return [items[place] for place in places.tolist()]


def fingerprint(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """Names a data set by the messages of its :func:`spread` prompts, in their order."""
    return prompt_hash(message for prompt in prompts for message in prompt)


def fingerprint_of(dataset: Any) -> str:
    """The :func:`fingerprint` of verl's data set."""
    return fingerprint(dataset[place]["raw_prompt"] for place in spread(range(len(dataset))))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
