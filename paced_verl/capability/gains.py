"""A model of all capabilities' gains given what was trained on, learnt while a run goes on.

    s_i ← s_i + h_i Σ_j T_ij √(b_j / B) + ε_i,    y_i = s_i + ν_i

with b the tokens of a decision and h_i = 1 − s_i what is left to learn. Row i of T and the true score s_i are the state
of a Kalman filter, the probes y its measurements. A probe is the end of one decision and the beginning of the next, so
the errors of consecutive differences y_t − y_{t−1} correlate by −½; the filter has this because it measures s, not Δs.
Its posterior is that of the Bayesian regression on all measurements at once, given the h that it has used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from paced_verl.capability.optimum import Aim, best_mix, gain
from paced_verl.capability.simplex import project

FloatArray = npt.NDArray[np.float64]
STEPS = 8  # of the way to the best mix


@dataclass(frozen=True)
class Prior:
    """What is believed of T before anything was trained, and how fast it may change.

    Attributes:
        rate, rate_sd: Mean and deviation of T_ii, in points of the score for all tokens of a decision.
        spill_sd: Deviation of T_ij, i ≠ j, whose mean is 0.
        misfit: Deviation of ε_i, as a share of ``rate`` × h_i.
        forget: f. T moves as T − m ← √f (T − m) + η between decisions, with η such that no knowledge at all is the
            prior again: what was learnt n decisions ago counts for fⁿ. 1: T never changes.
        scales: Factors of the first four, since nobody knows how much a decision's tokens teach. Each has a filter; how
            well each predicts the probes says what it counts for.
    """

    rate: float = 0.1
    rate_sd: float = 0.1
    spill_sd: float = 0.02
    misfit: float = 0.1
    forget: float = 0.95
    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass
class Gains:
    """The filters: K scales × C capabilities, each over (s_i, T_i1 … T_iC).

    Attributes:
        size: C.
        tokens: B, tokens of a decision.
        mean: (K, C, 1 + C).
        cov: (K, C, 1 + C, 1 + C).
        evidence: (K,) log-likelihood of the measurements since the first.
    """

    size: int
    tokens: float
    prior: Prior = field(default_factory=Prior)

    def __post_init__(self) -> None:
        own = np.eye(self.size, dtype=bool)
        scales = np.asarray(self.prior.scales, np.float64)
        self._centre = scales[:, None, None] * np.where(own, self.prior.rate, 0.0)
        self._spread = (scales[:, None, None] * np.where(own, self.prior.rate_sd, self.prior.spill_sd)) ** 2
        self._misfit = (scales * self.prior.rate * self.prior.misfit)[:, None]
        self.evidence: FloatArray = np.zeros(len(scales))
        self.mean: FloatArray | None = None
        self.cov: FloatArray | None = None

    def start(self, scores: FloatArray, se: FloatArray) -> None:
        """The first measurement (C,): of the scores nothing else is known."""
        kinds = len(self.evidence)
        first = np.broadcast_to(scores[None, :, None], (kinds, self.size, 1))
        self.mean = np.concatenate([first, self._centre], axis=2)
        self.cov = np.zeros((kinds, self.size, 1 + self.size, 1 + self.size))
        self.cov[..., 0, 0] = se**2
        inner = np.arange(1, 1 + self.size)
        self.cov[..., inner, inner] = self._spread

    def update(self, tokens: FloatArray, after: FloatArray, se: FloatArray) -> None:
        """A decision was made: tokens (C,) that were trained on, then scores (C,) with errors (C,)."""
        mean, cov = self._known()
        keep = np.sqrt(self.prior.forget)
        room = np.clip(1 - mean[..., 0], 0, 1)
        step = np.zeros_like(cov)
        step[..., 0, 0] = 1
        inner = np.arange(1, 1 + self.size)
        step[..., inner, inner] = keep
        roots = np.sqrt(tokens / self.tokens)
        # The score moves by the T of this decision, after T has moved itself.
        noise = np.zeros_like(cov)
        noise[..., inner, inner] = (1 - self.prior.forget) * self._spread
        through = np.zeros_like(cov)
        through[..., np.arange(1 + self.size), np.arange(1 + self.size)] = 1
        through[..., 0, 1:] = room[..., None] * roots
        shift = np.concatenate([np.zeros_like(room)[..., None], (1 - keep) * self._centre], axis=2)
        self.mean = _times(through, _times(step, mean) + shift)
        cov = through @ (step @ cov @ step.swapaxes(-1, -2) + noise) @ through.swapaxes(-1, -2)
        cov[..., 0, 0] += (self._misfit * room) ** 2
        self.cov = cov
        self.measure(after, se)

    def measure(self, scores: FloatArray, se: FloatArray) -> None:
        """One more measurement (C,) of the scores as they are."""
        mean, cov = self._known()
        surprise = scores - mean[..., 0]
        variance = np.maximum(cov[..., 0, 0] + se**2, 1e-18)
        weight = cov[..., 0] / variance[..., None]
        self.mean = mean + weight * surprise[..., None]
        cov = cov - weight[..., :, None] * cov[..., None, 0, :]
        self.cov = (cov + cov.swapaxes(-1, -2)) / 2
        self.evidence = self.evidence - 0.5 * (surprise**2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)

    @property
    def weights(self) -> FloatArray:
        """(K,) probabilities of the scales."""
        return np.asarray(np.exp(self.evidence - logsumexp(self.evidence)))

    @property
    def transfer(self) -> FloatArray:
        """(C, C) posterior mean of T."""
        return np.asarray(np.tensordot(self.weights, self._known()[0][..., 1:], 1))

    @property
    def transfer_se(self) -> FloatArray:
        """(C, C) posterior deviation of T, that between the scales included."""
        mean, cov = self._known()
        second = np.diagonal(cov, axis1=-2, axis2=-1)[..., 1:] + mean[..., 1:] ** 2
        variance = np.tensordot(self.weights, second, 1) - self.transfer**2
        return np.asarray(np.sqrt(np.maximum(variance, 0)))

    @property
    def room(self) -> FloatArray:
        """(C,) h, of the filtered scores."""
        return np.asarray(np.clip(1 - self.weights @ self._known()[0][..., 0], 0, 1))

    def draws(self, count: int, seed: int = 0) -> FloatArray:
        """(count, C, C) of T from the posterior."""
        mean, cov = self._known()
        rng = np.random.default_rng(seed)
        kind = rng.choice(len(self.evidence), count, p=self.weights)
        values, vectors = np.linalg.eigh(cov[..., 1:, 1:])
        root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
        normal = rng.standard_normal((count, self.size, self.size))
        return np.asarray(mean[kind][..., 1:] + np.einsum("kijl,kil->kij", root[kind], normal))

    def predict(self, mixes: FloatArray, horizon: float = 1.0, count: int = 256) -> tuple[FloatArray, FloatArray]:
        """Gains of mixes (A, C), shares of the tokens B: mean and deviation, (A, C), over draws of T."""
        drawn, room = self.draws(count), self.room
        each = np.stack([gain(drawn, room, mix, horizon) for mix in mixes])
        return each.mean(axis=1), each.std(axis=1)

    def optimise(self, aim: Aim) -> FloatArray:
        """The mix (C,) that is best by the posterior mean of T."""
        return best_mix(self.transfer, self.room, aim)

    def advantage(self, mixes: FloatArray, aim: Aim, count: int = 256) -> FloatArray:
        """Reward of mixes (A, C) minus that of the static one, under the same draws of T for all: (A, count)."""
        drawn, room = self.draws(count), self.room
        static = aim.value(drawn, room, project(aim.static, aim.floor))
        return np.stack([aim.value(drawn, room, mix) for mix in mixes]) - static

    def cautious(self, aim: Aim, confidence: float) -> tuple[FloatArray, FloatArray]:
        """As far from the static mix towards the best one as the posterior warrants: the mix (C,), its advantages.

        Of the mixes on the way, the one whose advantage has the largest quantile at 1 − confidence; that of the static
        mix is 0. A part of the way is surer to help than all of it: what helps grows with the distance, what the first
        steps have gained already is lost with its square.
        """
        start, end = np.sqrt(project(aim.static, aim.floor)), np.sqrt(self.optimise(aim))
        way = np.array([(1 - t) * start + t * end for t in np.linspace(0, 1, STEPS + 1)]) ** 2
        mixes = np.array([project(mix / mix.sum(), aim.floor) for mix in way])
        advantage = self.advantage(mixes, aim)
        chosen = int(np.argmax(np.quantile(advantage, 1 - confidence, axis=1)))
        return mixes[chosen], advantage[chosen]

    def _known(self) -> tuple[FloatArray, FloatArray]:
        if self.mean is None or self.cov is None:
            raise RuntimeError("start() comes first: the model has no scores yet")
        return self.mean, self.cov


def _times(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    return np.asarray((matrix @ vector[..., None])[..., 0])
