"""Short names of prompts, data sets and tokenizers: files made for others are noticed. No Ray, no verl."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SPREAD = 64  # enough prompts for another order to show; hashing millions of them would delay every start

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def prompt_hash(messages: Iterable[Mapping[str, Any]]) -> str:
    """A short hash of messages, the same in every process: of images and the like it knows the kind only."""
    return _hash(_text(messages))


def template_hash(messages: Iterable[Mapping[str, Any]]) -> str:
    """The same for messages that differ in numbers, in upper and lower case or in spaces only."""
    return _hash(" ".join(_NUMBER.sub("0", _text(messages, ensure_ascii=False)).casefold().split()))


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


def _text(messages: Iterable[Mapping[str, Any]], ensure_ascii: bool = True) -> str:
    contents = [[message["role"], message["content"]] for message in messages]
    return json.dumps(contents, default=lambda medium: type(medium).__name__, ensure_ascii=ensure_ascii)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
