"""A data set's name by a few of its prompts: files made for another one, or another order, are noticed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paced_verl.targets import prompt_hash

PROMPTS = 64
"""Enough for another order to show; hashing millions of prompts would delay every start."""


def places(size: int) -> list[int]:
    """The positions of the prompts that name a data set of ``size`` prompts, spread evenly over it."""
    return np.linspace(0, size - 1, min(size, PROMPTS), dtype=int).tolist()


def fingerprint(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """The hash of the messages of these prompts, in their order."""
    return prompt_hash([message for prompt in prompts for message in prompt])
