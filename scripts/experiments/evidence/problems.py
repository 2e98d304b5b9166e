"""Problems of one width that tiny transformers learn in seconds, and that can be judged exactly.

``reverse``: a word is answered by its letters backwards, and by nothing else. ``copy``, the second skill: by the word
as it is. ``sums``: digits are answered by their running totals, modulo ten; only the last one is judged, so that there
are several ways to it, and a wrong total in between is carried on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SYMBOLS = 10  # letters, or digits
BLANK, ASK, COPY, HOLE, END = range(SYMBOLS, SYMBOLS + 5)
VOCAB = SYMBOLS + 5
LONGEST = 8
PROMPT, RESPONSE = LONGEST + 1, LONGEST + 1
FAMILIES = ("reverse", "sums", "copy")


@dataclass(frozen=True)
class Problems:
    """N problems.

    Attributes:
        prompts: int64 (N, PROMPT): symbols, blanks, and last what is asked.
        solutions: int64 (N, RESPONSE): a worked solution, END, blanks.
        lengths: int64 (N,): symbols of each.
    """

    prompts: Tensor
    solutions: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, which: Tensor | slice) -> Problems:
        return Problems(self.prompts[which], self.solutions[which], self.lengths[which])


def join(parts: Sequence[Problems]) -> Problems:
    """All of them, one after the other."""
    return Problems(*(torch.cat([getattr(p, name) for p in parts]) for name in ("prompts", "solutions", "lengths")))


def make(family: str, lengths: Tensor, generator: torch.Generator) -> Problems:
    """A problem of each of these lengths, int64 (N,)."""
    n, last = len(lengths), lengths[:, None] - 1
    symbols = torch.randint(SYMBOLS, (n, LONGEST), generator=generator)
    place = torch.arange(LONGEST)[None]
    prompts = torch.full((n, PROMPT), BLANK)
    prompts[:, :LONGEST] = symbols.where(place <= last, BLANK)
    prompts[:, -1] = COPY if family == "copy" else ASK
    solutions = torch.full((n, RESPONSE), BLANK)
    solutions[:, :LONGEST] = solve(family, symbols, lengths)
    ends = lengths - 1 if family == "sums" else lengths
    solutions[torch.arange(n), ends] = END
    return Problems(prompts, solutions, lengths)


def solve(family: str, symbols: Tensor, lengths: Tensor) -> Tensor:
    """The worked solutions without END, int64 (N, LONGEST), blank behind."""
    place, last = torch.arange(LONGEST)[None], lengths[:, None] - 1
    if family == "copy":
        return symbols.where(place <= last, BLANK)
    if family == "reverse":
        return symbols.gather(1, (last - place).clamp(min=0)).where(place <= last, BLANK)
    totals = symbols.cumsum(1) % 10
    return totals.roll(-1, 1).where(place < last, BLANK)


def draw_lengths(n: int, among: Sequence[int], generator: torch.Generator) -> Tensor:
    """n lengths, each as likely."""
    return torch.tensor(among)[torch.randint(len(among), (n,), generator=generator)]


def mask(responses: Tensor) -> Tensor:
    """float32 (…, RESPONSE): 1 up to the first END, that one included."""
    ends = (responses == END).long()
    return (ends.cumsum(-1) - ends == 0).float()


def right(family: str, responses: Tensor, solutions: Tensor) -> Tensor:
    """Whether responses answer as the solutions do, bool (N,)."""
    if family == "sums":
        return final(responses) == final(solutions)
    return ((responses == solutions) | (mask(responses) == 0)).all(1)


def final(responses: Tensor) -> Tensor:
    """The symbol before the first END, int64 (N,); −1 where there is none."""
    ended = (responses == END).any(1)
    place = mask(responses).sum(1).long() - 2
    symbol = responses.gather(1, place.clamp(min=0)[:, None])[:, 0]
    return symbol.where(ended & (place >= 0) & (symbol < SYMBOLS), -1)


def with_holes(problems: Problems, generator: torch.Generator) -> Problems:
    """Half of each prompt's symbols, at least one, cannot be read: nobody can know the answer."""
    symbols = problems.prompts[:, :LONGEST]
    rank = torch.rand(symbols.shape, generator=generator).where(symbols != BLANK, 2.0).argsort(1).argsort(1)
    hidden = rank < (problems.lengths[:, None] + 1) // 2
    prompts = problems.prompts.clone()
    prompts[:, :LONGEST] = symbols.masked_fill(hidden, HOLE)
    return Problems(prompts, problems.solutions, problems.lengths)
