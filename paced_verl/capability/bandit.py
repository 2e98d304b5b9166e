"""The paper's bandit: an ensemble of small nets from context and mix to one reward (arXiv 2605.11290), as a baseline.

What differs from the released code: a net's bootstrap weights are drawn once for each observation, so that the spread
of the nets is that of a bootstrap; nets are trained from scratch at every fit; inputs and rewards are z-scored.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]


def bootstrap_weights(seed: int, nets: int, count: int) -> FloatArray:
    """(J, n) weights ~ Exp(1) (the Bayesian bootstrap): those of n observations are the first of those of n + 1."""
    return np.stack([np.random.default_rng([seed, net]).exponential(size=count) for net in range(nets)])


def upper_bound(mean: FloatArray, sd: FloatArray, kappa: float) -> int:
    """The action with the largest mean + κ sd, of (A,) each. Where |f − mean| ≤ κ sd, its regret is at most 2 κ sd."""
    return int(np.argmax(mean + kappa * sd))


class Ensemble:
    """J nets of two hidden layers, trained side by side."""

    def __init__(self, nets: int = 5, hidden: int = 64, steps: int = 200, rate: float = 1e-3, seed: int = 0) -> None:
        self.nets, self.hidden, self.steps, self.rate, self.seed = nets, hidden, steps, rate, seed
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fit(self, inputs: FloatArray, rewards: FloatArray) -> None:
        """To inputs (n, F) and rewards (n,), from scratch: the same data give the same nets."""
        self._centre, self._scale = inputs.mean(axis=0), _scale(inputs.std(axis=0))
        self._mean, self._sd = float(rewards.mean()), float(_scale(rewards.std()))
        x = torch.from_numpy((inputs - self._centre) / self._scale).expand(self.nets, -1, -1)
        y = torch.from_numpy((rewards - self._mean) / self._sd)
        weights = torch.from_numpy(bootstrap_weights(self.seed, self.nets, len(rewards)))
        generator = torch.Generator().manual_seed(self.seed)
        sizes = [inputs.shape[1], self.hidden, self.hidden, 1]
        self._layers = []
        for wide, out in pairwise(sizes):
            bound = wide**-0.5  # as torch.nn.Linear
            drawn = (torch.rand(self.nets, wide + 1, out, generator=generator, dtype=torch.float64) * 2 - 1) * bound
            self._layers.append((drawn[:, :-1].clone().requires_grad_(), drawn[:, -1:].clone().requires_grad_()))
        optimizer = torch.optim.Adam([part for layer in self._layers for part in layer], lr=self.rate)
        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = (weights * (self._forward(x) - y) ** 2).mean(dim=1).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation (over J − 1) of the nets' rewards, (A,) each, for inputs (A, F)."""
        x = torch.from_numpy((inputs - self._centre) / self._scale).expand(self.nets, -1, -1)
        said = self._forward(x).numpy() * self._sd + self._mean
        return said.mean(axis=0), said.std(axis=0, ddof=1)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight, bias in self._layers[:-1]:
            x = torch.relu(torch.baddbmm(bias, x, weight))
        weight, bias = self._layers[-1]
        return torch.baddbmm(bias, x, weight).squeeze(-1)


def calibration(rewards: FloatArray, utility: FloatArray) -> float:
    """Points of utility (n,) for a point of cumulative reward (n,), by least squares; NaN for less than two of them.

    It says whether the reward stands for the utility. It changes no decision: a factor common to all rewards does not.
    """
    spread = np.var(rewards) if len(rewards) > 1 else 0.0
    return float(np.mean((rewards - rewards.mean()) * (utility - utility.mean())) / spread) if spread else float("nan")


def _scale(deviation: npt.ArrayLike) -> FloatArray:
    """What a z-score divides by: inputs that never change stay 0."""
    values = np.asarray(deviation, np.float64)
    return np.where(values > 1e-12, values, 1.0)
