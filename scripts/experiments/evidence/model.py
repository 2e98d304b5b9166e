"""A small causal transformer, its samples, and how it learns before a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.experiments.evidence.problems import PROMPT, RESPONSE, VOCAB, Problems, mask

HEADS = 4
ROWS = 512
"""Responses that are sampled at a time; more take longer each."""
Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention and a feed-forward layer, each before a residual sum."""

    def __init__(self, width: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, W) and what came before → the same, and what came until now."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.inputs(self.before(x)).chunk(3, dim=-1)
        )
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.feed(self.between(x)), (k, v)


class Model(nn.Module):
    """Tokens → logits of the next one."""

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, width), nn.Embedding(PROMPT + RESPONSE, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """int64 (B, T), and the cache of what came before → logits (B, T, VOCAB) and the cache."""
        start = cache[0][0].shape[2] if cache else 0
        x = self.tokens(tokens) + self.places(torch.arange(start, start + tokens.shape[1]))
        new: Cache = []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, cache[i] if cache else None)
            new.append(kept)
        return self.head(self.norm(x)), new

    def response_logits(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Logits of each token of the responses: (B, RESPONSE, VOCAB)."""
        logits, _ = self(torch.cat([prompts, responses], 1)[:, :-1])
        return logits[:, PROMPT - 1 :]


@torch.no_grad()
def sample(model: Model, prompts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Responses, int64 (B, RESPONSE): at temperature 1, or greedy without a generator."""
    return torch.cat([_sample(model, part, generator) for part in prompts.split(ROWS)])


def _sample(model: Model, prompts: Tensor, generator: torch.Generator | None) -> Tensor:
    cache: Cache | None = None
    tokens, chosen = prompts, []
    for _ in range(RESPONSE):
        logits, cache = model(tokens, cache)
        last = logits[:, -1]
        tokens = (
            last.argmax(-1, keepdim=True)
            if generator is None
            else torch.multinomial(last.softmax(-1), 1, generator=generator)
        )
        chosen.append(tokens)
    return torch.cat(chosen, 1)


def pretrain(
    model: Model,
    problems: Problems,
    generator: torch.Generator,
    enough: Callable[[float], bool],
    steps: int = 1500,
    rate: float = 3e-3,
) -> int:
    """Learn the solutions, so many steps or until it is ``enough``, which is asked with the loss, smoothed over ten
    steps; returns how many."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    smooth = 3.0
    for step in range(steps):
        rows = torch.randint(len(problems), (128,), generator=generator)
        solutions = problems.solutions[rows]
        targets = solutions.where(mask(solutions) == 1, -100)
        logits = model.response_logits(problems.prompts[rows], solutions)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = 0.9 * smooth + 0.1 * loss.item()
        if enough(smooth):
            return step + 1
    return steps
