"""Simulated students whose gains are known: scores in [0, 1], measured by binomial probes, many seeds side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from paced_verl.capability.policies import PolicySettings, make_policy
from paced_verl.capability.protocol import Outcome, State

TOKENS = 1000.0  # of a decision
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores (…, C) and mixes (…, C) to what the scores become."""


@dataclass(frozen=True)
class World:
    r: np.ndarray
    start: np.ndarray
    step: Step
    decisions: int = 20
    probes: int | None = 256  # None: exact scores

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"c{index}" for index in range(len(self.r)))

    def utility(self, mixes: np.ndarray) -> np.ndarray:
        """Of mixes (…, C) kept for the whole run: r · s at its end, (…)."""
        scores = np.broadcast_to(self.start, mixes.shape)
        for _ in range(self.decisions):
            scores = self.step(scores, mixes)
        return scores @ self.r

    def best_fixed(self, rounds: int = 12, seed: int = 0) -> tuple[np.ndarray, float]:
        """By random search over the simplex that closes in on the best: no gradient, no model."""
        rng = np.random.default_rng(seed)
        best, width = self.r, 1.0
        for _ in range(rounds):
            near = np.maximum(best + width * rng.normal(size=(4000, len(best))) * best.mean(), 0)
            free = rng.dirichlet(np.ones(len(best)), 2000)
            tried = np.concatenate([best[None], free, near[near.sum(1) > 0]])
            tried /= tried.sum(1, keepdims=True)
            best = tried[np.argmax(self.utility(tried))]
            width *= 0.5
        return best, float(self.utility(best))

    def best_schedule(self, starts: int = 4, seed: int = 0) -> float:
        """The utility of the best mixes, one for each decision: what nobody who decides can exceed.

        By gradients taken numerically, from the best fixed mix and from near it; not below its utility.
        """
        fixed, utility = self.best_fixed()
        rng = np.random.default_rng(seed)
        first = np.tile(np.log(np.maximum(fixed, 1e-3)), self.decisions)

        def loss(logits: np.ndarray) -> float:
            scores = self.start
            for row in logits.reshape(self.decisions, -1):
                mix = np.exp(row - row.max())
                scores = self.step(scores, mix / mix.sum())
            return -float(scores @ self.r)

        noises = [0.0, *[0.5] * (starts - 1)]
        found = [minimize(loss, first + noise * rng.normal(size=first.size), method="L-BFGS-B") for noise in noises]
        return max(utility, *(-one.fun for one in found))

    def probe(self, scores: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.probes is None:
            return scores.copy(), np.zeros_like(scores)
        hits = rng.binomial(self.probes, scores)
        smooth = (hits + 1) / (self.probes + 2)
        return hits / self.probes, np.sqrt(smooth * (1 - smooth) / self.probes)


@dataclass(frozen=True)
class Run:
    utility: float  # r · s at the end, true
    mixes: np.ndarray  # (decisions, C)
    scores: np.ndarray  # (decisions + 1, C), true
    metrics: list[dict[str, float]]


def run(world: World, name: str, seed: int, **settings: object) -> Run:
    policy = make_policy(name, PolicySettings(world.names, TOKENS, seed=seed, **settings))
    rng = np.random.default_rng([seed, 7])
    scores = [world.start]
    seen, error = world.probe(world.start, rng)
    spent, mixes, metrics = np.zeros(len(world.r)), [], []
    for decision in range(world.decisions):
        state = State(world.r, seen, error, spent, (world.decisions - decision) * TOKENS, decision, 1 - seen)
        mix = policy.propose(state)
        scores.append(world.step(scores[-1], mix))
        after, after_se = world.probe(scores[-1], rng)
        policy.observe(Outcome(mix, mix * TOKENS, seen, after, after_se, float(world.r @ (after - seen)), error))
        spent, seen, error = spent + mix * TOKENS, after, after_se
        mixes.append(mix)
        metrics.append(policy.metrics())
    return Run(float(world.r @ scores[-1]), np.array(mixes), np.array(scores), metrics)


def roots(transfer: np.ndarray) -> Step:
    """Δs = (1 − s) T √w: the model's own kind of world."""
    return lambda s, w: np.clip(s + (1 - s) * (np.sqrt(w) @ transfer.T), 0, 1)


def constant(transfer: np.ndarray) -> Step:
    """Δs = T √w, whatever the score: the concave world, whose optimum never moves."""
    return lambda s, w: np.clip(s + np.sqrt(w) @ transfer.T, 0, 1)


def ceilings(rates: np.ndarray, ceiling: np.ndarray) -> Step:
    """Δs = a √w (c − s)₊: capabilities that saturate at different heights, none of which the model knows."""
    return lambda s, w: s + rates * np.sqrt(w) * np.maximum(ceiling - s, 0)


def prerequisite(rates: np.ndarray, needs: np.ndarray) -> Step:
    """Δs_i = a_i √w_i (1 − s_i) × σ((s_{needs_i} − .5) / .05): a capability is learnt only after another. −1: none."""

    def step(s: np.ndarray, w: np.ndarray) -> np.ndarray:
        gate = np.where(needs >= 0, 1 / (1 + np.exp(-(s[..., np.maximum(needs, 0)] - 0.5) / 0.05)), 1.0)
        return s + rates * np.sqrt(w) * (1 - s) * gate

    return step
