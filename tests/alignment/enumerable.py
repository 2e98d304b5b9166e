"""A student whose every response can be listed: the truth of the tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from paced_verl.alignment.tree import FREE, Rollout

Prefix = tuple[int, ...]


class EnumerableModel:
    """All responses have L tokens of V kinds; logits are a table by prefix, success any function of the response."""

    def __init__(self, vocabulary: int, length: int, seed: int):
        rng = np.random.default_rng(seed)
        self.vocabulary, self.length = vocabulary, length
        self.prefixes = [p for depth in range(length) for p in itertools.product(range(vocabulary), repeat=depth)]
        self.logits = {prefix: rng.normal(size=vocabulary) for prefix in self.prefixes}
        self.successes = {
            response: float(rng.random() < 0.4) for response in itertools.product(range(vocabulary), repeat=length)
        }

    def p(self, prefix: Prefix) -> np.ndarray:
        e = np.exp(self.logits[prefix] - self.logits[prefix].max())
        return e / e.sum()

    def reach(self, prefix: Prefix) -> float:
        return float(np.prod([self.p(prefix[:i])[token] for i, token in enumerate(prefix)]))

    def responses(self) -> Iterator[tuple[Prefix, float]]:
        """Every response and its probability."""
        for response in self.successes:
            yield response, self.reach(response)

    def q(self, prefix: Prefix) -> np.ndarray:
        """Success once each token is chosen, by listing what may follow."""
        found = []
        for token in range(self.vocabulary):
            begun = (*prefix, token)
            total = 0.0
            for rest in itertools.product(range(self.vocabulary), repeat=self.length - len(begun)):
                chance = np.prod([self.p((*begun, *rest[:i]))[t] for i, t in enumerate(rest)]) if rest else 1.0
                total += chance * self.successes[(*begun, *rest)]
            found.append(total)
        return np.array(found)

    def rollout(self, rng: np.random.Generator, forced: Prefix = ()) -> Rollout:
        """A response that begins with ``forced``, whose last token is the forced one."""
        tokens = list(forced)
        while len(tokens) < self.length:
            tokens.append(int(rng.choice(self.vocabulary, p=self.p(tuple(tokens)))))
        response = tuple(tokens)
        return Rollout(response, len(forced) - 1 if forced else FREE, self.successes[response])

    def expected_success(self, logits: dict[Prefix, torch.Tensor]) -> torch.Tensor:
        """J as a function of the logits, by listing: to be differentiated."""
        log_probs = {prefix: value.log_softmax(-1) for prefix, value in logits.items()}
        total = torch.zeros((), dtype=torch.float64)
        for response, success in self.successes.items():
            if success:
                total = total + sum(log_probs[response[:i]][t] for i, t in enumerate(response)).exp() * success
        return total

    def tensors(self) -> dict[Prefix, torch.Tensor]:
        return {prefix: torch.from_numpy(value).clone().requires_grad_() for prefix, value in self.logits.items()}
