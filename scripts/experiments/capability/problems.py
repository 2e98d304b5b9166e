"""Six capabilities of one tiny student: what is done to a row of digits, as the prompt's last two tokens say.

Models, samples and judges are those of :mod:`scripts.experiments.evidence`; so is the width of prompts and responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.experiments.evidence import problems as one_family
from scripts.experiments.evidence.problems import (
    ASK,
    BLANK,
    COPY,
    END,
    HOLE,
    LONGEST,
    PROMPT,
    RESPONSE,
    SYMBOLS,
    Problems,
    draw_lengths,
)

LENGTHS = (3, 4, 5, 6)
NAMES = ("copy", "deep", "peak", "reverse", "shift", "sort")
ASKED = dict(zip(NAMES, ((COPY, COPY), (HOLE, HOLE), (HOLE, ASK), (ASK, ASK), (COPY, ASK), (ASK, COPY)), strict=True))
REQUIREMENT = {"reverse": 0.25, "peak": 0.25, "deep": 0.2, "copy": 0.1, "shift": 0.1, "sort": 0.1}
"""r, written down before anything was run."""


def make(name: str, count: int, generator: torch.Generator) -> Problems:
    """So many problems of a capability."""
    lengths = draw_lengths(count, LENGTHS, generator)
    symbols = torch.randint(SYMBOLS, (count, LONGEST), generator=generator)
    inside = torch.arange(LONGEST)[None] < lengths[:, None]
    prompts = torch.full((count, PROMPT), BLANK)
    prompts[:, :LONGEST] = symbols.where(inside, BLANK)
    prompts[:, -2:] = torch.tensor(ASKED[name])
    solutions = torch.full((count, RESPONSE), BLANK)
    solutions[:, :LONGEST] = solve(name, symbols, lengths)
    solutions[torch.arange(count), lengths] = END
    return Problems(prompts, solutions, lengths)


def solve(name: str, symbols: Tensor, lengths: Tensor) -> Tensor:
    """The solutions without END, int64 (N, LONGEST), blank behind.

    ``copy`` and ``reverse`` are those of the evidence; ``shift`` adds one to each digit, modulo ten; ``sort`` puts them
    in order; ``peak`` is the largest digit so far; ``deep`` is x_i · x_{i+1} + x_{i+2} modulo ten for each i, in a
    circle: a table of a thousand entries.
    """
    inside = torch.arange(LONGEST)[None] < lengths[:, None]
    if name == "shift":
        return ((symbols + 1) % SYMBOLS).where(inside, BLANK)
    if name == "sort":
        return symbols.where(inside, SYMBOLS).sort(1).values.where(inside, BLANK)
    if name == "peak":
        return symbols.cummax(1).values.where(inside, BLANK)
    if name == "deep":
        one, other = (symbols.gather(1, (torch.arange(LONGEST)[None] + n) % lengths[:, None]) for n in (1, 2))
        return ((symbols * one + other) % SYMBOLS).where(inside, BLANK)
    return one_family.solve(name, symbols, lengths)
