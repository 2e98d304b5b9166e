"""Whether it pays to decide at all: what the best mix would gain over the static one, before a run is paid for.

Some short interventions start at one checkpoint: one for each capability, which trains on it alone, and a few mixed
ones. They give the transfer matrix T of :mod:`paced_verl.capability.gains`, with errors. Under that model, as long as
a single decision moves no score by much, the gains of a run depend on Σ_t √w_t alone and are concave in it: no sequence
of mixes is better than the best fixed one, and what that gains is what any policy can gain. Only a T that changes, as
where one capability is learnt after another, leaves more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from paced_verl.capability.optimum import Aim, best_mix, gained, left_out
from paced_verl.capability.reward import reward
from paced_verl.capability.simplex import project
from paced_verl.errors import PacedError
from paced_verl.statistics import NORMAL_95

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Transfer:
    """T with its errors; rows are independent.

    Attributes:
        mean: (C, C); T_ij is what all of a decision's tokens, spent on j, add to i at a score of 0.
        covariance: (C, C, C) of each row.
    """

    mean: FloatArray
    covariance: FloatArray

    @property
    def se(self) -> FloatArray:
        """(C, C)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))

    @property
    def interval(self) -> FloatArray:
        """(C, C, 2), 95 %."""
        return self.mean[..., None] + NORMAL_95 * self.se[..., None] * np.array([-1.0, 1.0])

    @property
    def hurts(self) -> list[tuple[int, int]]:
        """Pairs (i, j) where tokens spent on j are known to cost i."""
        harmed = self.interval[..., 1] < 0
        return [(int(i), int(j)) for i, j in np.argwhere(harmed & ~np.eye(len(self.mean), dtype=bool))]

    def draws(self, count: int, seed: int = 0) -> FloatArray:
        """(count, C, C)."""
        rng = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.covariance)
        return np.asarray(self.mean + np.einsum("ijl,kil->kij", root, rng.standard_normal((count, *self.mean.shape))))


def fit_transfer(
    mixes: FloatArray,
    before: FloatArray,
    before_se: FloatArray,
    after: FloatArray,
    se: FloatArray,
    prior_sd: float = 1.0,
) -> Transfer:
    """T from interventions of one decision's tokens each, by generalised least squares.

    They share the measurement of where they started, so their differences correlate.

    Args:
        mixes: (M, C) shares of the tokens that were trained on.
        before, before_se: (C,) scores of the checkpoint, and their errors.
        after, se: (M, C) scores after each. Errors should hold what another seed would change, not the probes' alone.
        prior_sd: Deviation of T's entries before anything is known, about 0.

    Raises:
        PacedError: The mixes do not tell the capabilities apart, or an error is 0.
    """
    if np.linalg.matrix_rank(np.sqrt(mixes)) < mixes.shape[1]:
        raise PacedError(
            "the interventions' mixes do not tell the capabilities apart: train on each alone, at least once"
        )
    if (se <= 0).any():
        raise PacedError("scores after an intervention must have errors above 0")
    means, covariances = [], []
    for i, room in enumerate(np.clip(1 - before, 0, 1)):
        x = room * np.sqrt(mixes)
        noise = np.diag(se[:, i] ** 2) + before_se[i] ** 2
        precision = np.eye(x.shape[1]) / prior_sd**2 + x.T @ np.linalg.solve(noise, x)
        covariances.append(np.linalg.inv(precision))
        means.append(covariances[-1] @ x.T @ np.linalg.solve(noise, after[:, i] - before[i]))
    return Transfer(np.array(means), np.array(covariances))


@dataclass(frozen=True)
class Headroom:
    """What deciding can gain. Gains are shares of what the static mix gains.

    Attributes:
        best: (C,) the best fixed mix, by the mean of T.
        static_gain: What the static mix gains over the horizon, in points of r · s.
        gain: What ``best`` gains beyond it. The mix was chosen by the same data: it flatters itself a little.
        interval: 95 % of ``gain``.
        at_most: What the best mix of all gains beyond it, were T known: 95 % upper limit.
        worth: The share from which it is worth to decide.
    """

    best: FloatArray
    static_gain: float
    gain: float
    interval: tuple[float, float]
    at_most: float
    worth: float

    @property
    def verdict(self) -> str:
        """In words."""
        low, high = self.interval
        said = f"the best fixed mix gains {self.gain:+.1%} of what the static mix does ({low:+.1%} to {high:+.1%})"
        if self.static_gain <= 0:
            return "The static mix gains nothing, so shares of its gain say nothing. Look at the transfer matrix."
        if self.at_most < self.worth:
            return f"Do not bother: deciding can gain at most {self.at_most:.1%} of what the static mix does; {said}."
        if low > 0 and self.gain >= self.worth:
            return f"It pays to decide: {said}. Where T stays as it is, no policy gains more than {self.at_most:.1%}."
        return f"Not known: {said}, and it may be up to {self.at_most:.1%}. More probes or interventions would tell."


def headroom(
    transfer: Transfer, scores: FloatArray, aim: Aim, worth: float = 0.05, draws: int = 200, seed: int = 0
) -> Headroom:
    """What the best fixed mix gains beyond the static one, from scores (C,), over the aim's horizon.

    The trust region of the aim is left out: the question is what there is, not how it would be found.
    """
    everywhere = replace(aim, trust=1.0)
    room = np.clip(1 - scores, 0, 1)
    static = project(aim.static, aim.floor)
    best = best_mix(transfer.mean, room, everywhere)
    drawn = transfer.draws(draws, seed)
    base = float(everywhere.value(transfer.mean, room, static))
    unit = abs(base) or 1.0
    mine = (everywhere.value(drawn, room, best) - everywhere.value(drawn, room, static)) / unit
    known = [
        everywhere.value(t, room, best_mix(t, room, everywhere)) - everywhere.value(t, room, static) for t in drawn
    ]
    low, high = np.quantile(mine, [0.025, 0.975])
    gained = float(everywhere.value(transfer.mean, room, best) - base) / unit
    return Headroom(best, base, gained, (float(low), float(high)), float(np.quantile(known, 0.95)) / unit, worth)


@dataclass(frozen=True)
class Hindsight:
    """What a run's decisions were worth, by what is believed of T after them. Points of r · s, with 95 % intervals.

    Attributes:
        best: (C,) the best fixed mix for as many tokens.
        headroom: What it would have gained beyond the static one: mean, low, high.
        regret: What it would have gained beyond the mixes that were trained on.
    """

    best: FloatArray
    headroom: tuple[float, float, float]
    regret: tuple[float, float, float]


def hindsight(
    transfer: Transfer, scores: FloatArray, tokens: FloatArray, aim: Aim, draws: int = 2000, seed: int = 0
) -> Hindsight:
    """Look back on a run from its first scores (C,).

    Args:
        transfer: As it is believed at the end.
        scores: Before the first decision.
        tokens: (D, C) that each decision trained on, as multiples of those that T is for.
        aim: With the requirement; its horizon and size are those of ``tokens``.
    """
    sizes, room = tokens.sum(axis=1), np.clip(1 - scores, 0, 1)
    whole = replace(aim, trust=1.0, horizon=float(len(sizes)), size=float(sizes.mean()))
    best = best_mix(transfer.mean, room, whole)
    static = project(aim.static, aim.floor)
    drawn = transfer.draws(draws, seed)

    def worth(spent: FloatArray) -> FloatArray:
        """Of one decision after the other, under each draw: (draws,)."""
        left = np.prod([left_out(drawn, decision) for decision in spent], axis=0)
        return reward(aim.r, gained(room, left), aim.beta, aim.protected)

    made, kept = worth(tokens), worth(sizes[:, None] * best)
    return Hindsight(best, _interval(kept - worth(sizes[:, None] * static)), _interval(kept - made))


def _interval(drawn: FloatArray) -> tuple[float, float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(drawn.mean()), float(low), float(high)
