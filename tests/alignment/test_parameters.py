"""Local and global: does the alignment of logits say how an update of shared parameters would change success?"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from paced_verl.alignment.distil import descent_direction
from paced_verl.alignment.ideal import ideal_gradient
from paced_verl.alignment.score import Scores, aggregate

V, L, PAIRS = 6, 3, 50
PREFIXES = [p for depth in range(L) for p in itertools.product(range(V), repeat=depth)]
RESPONSES = list(itertools.product(range(V), repeat=L))


class Transformer(nn.Module):
    """Two causal layers; token V begins a response."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.places = nn.Embedding(V + 1, 16), nn.Embedding(L + 1, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, V)
        self.double()

    def log_probs(self) -> dict[tuple[int, ...], torch.Tensor]:
        """Of every prefix."""
        begun = torch.tensor([(V, *response[: L - 1]) for response in RESPONSES])
        mask = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
        hidden = self.layers(self.tokens(begun) + self.places(torch.arange(L)), mask=mask)
        every = 2 * self.head(hidden).log_softmax(-1)
        every = every.log_softmax(-1)
        return {response[:depth]: every[i, depth] for i, response in enumerate(RESPONSES) for depth in range(L)}


def flat(value: torch.Tensor, model: nn.Module) -> torch.Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_signs_agree_where_the_alignment_is_clear() -> None:
    """50 students with random verifiers and teachers; a distillation that samples prefixes from the student."""
    rng, both = np.random.default_rng(0), []
    for pair in range(PAIRS):
        model = Transformer(pair)
        log_probs = model.log_probs()
        success = {response: float(rng.random() < 0.3) for response in RESPONSES}
        p = {prefix: log_probs[prefix].exp().detach().numpy() for prefix in PREFIXES}
        q: dict[tuple[int, ...], np.ndarray] = {}
        for prefix in reversed(PREFIXES):
            after = [(*prefix, token) for token in range(V)]
            q[prefix] = np.array([success[a] if len(a) == L else p[a] @ q[a] for a in after])
        tilt = rng.uniform(-3, 3)
        teacher = {}
        for prefix in PREFIXES:
            logit = np.log(p[prefix]) + tilt * q[prefix] + rng.normal(size=V)
            teacher[prefix] = logit - np.log(np.exp(logit).sum())

        reach = {prefix: float(np.prod([p[prefix[:i]][t] for i, t in enumerate(prefix)])) for prefix in PREFIXES}
        chances = {r: sum(log_probs[r[:i]][t] for i, t in enumerate(r)) for r in RESPONSES if success[r]}
        rises = flat(sum(chance.exp() for chance in chances.values()), model)
        loss = sum(
            reach[prefix] * (log_probs[prefix].exp() * (log_probs[prefix] - torch.from_numpy(teacher[prefix]))).sum()
            for prefix in PREFIXES
        )
        globally = float(nn.functional.cosine_similarity(rises, -flat(loss, model), dim=0))

        g = np.stack([ideal_gradient(p[prefix], q[prefix]) for prefix in PREFIXES])
        d = descent_direction(
            np.stack([np.log(p[prefix]) for prefix in PREFIXES]),
            np.stack([teacher[prefix] for prefix in PREFIXES]),
            "reverse_kl",
        )
        n = len(PREFIXES)
        weight = np.array([reach[prefix] for prefix in PREFIXES])
        parts = ((g * d).sum(-1), (g**2).sum(-1), np.zeros(n), (d**2).sum(-1))
        both.append((aggregate(Scores(np.zeros(n, np.int64), *parts, weight)), globally))
    locally, globally_ = np.array(both).T
    clear = np.abs(locally) > 0.3
    assert clear.sum() >= 15
    assert np.mean(np.sign(locally[clear]) == np.sign(globally_[clear])) >= 0.9
    print(f"correlation of both cosines: {np.corrcoef(locally, globally_)[0, 1]:.2f}, {clear.sum()} clear")
