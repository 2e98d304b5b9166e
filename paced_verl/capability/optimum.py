"""The best mix where every gain is known: a convex problem, once it is written in the roots of the shares.

With u = √w the simplex is a part of the unit sphere, the model's gains are concave in u, and a bound on the Hellinger
distance from the static mix is a plane, u · √static ≥ 1 − trust. Over the ball instead of the sphere the problem is
convex, and its optimum lies on the sphere wherever more tokens of anything would help.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from paced_verl.capability.reward import reward
from paced_verl.capability.simplex import project

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Aim:
    """What a mix is to be best at, and where it may lie.

    Attributes:
        r: (C,) requirement.
        static: (C,) the mix to stay near to.
        horizon: Decisions for which the mix will be kept; the gains of all of them count.
        beta, protected: As :func:`~paced_verl.capability.reward.reward` has them.
        lam: Points of the score that it is worth to train on a capability of cost 1 alone, over the horizon.
        cost: (C,) relative costs of the capabilities' tokens; ``None``: all the same, so that they decide nothing.
        trust: Largest squared Hellinger distance from the static mix; 1: anywhere.
        floor: Smallest share of a capability.
        size: Tokens of one of these decisions, as a multiple of those that T is for.
    """

    r: FloatArray
    static: FloatArray
    horizon: float = 1.0
    beta: float = 0.0
    protected: npt.NDArray[np.bool_] | None = None
    lam: float = 0.0
    cost: FloatArray | None = None
    trust: float = 1.0
    floor: float = 0.0
    size: float = 1.0

    def value(self, transfer: FloatArray, room: FloatArray, mix: FloatArray) -> FloatArray:
        """The reward of a mix (C,) under one or many transfer matrices (…, C, C): (…)."""
        paid = 0.0 if self.cost is None else float(self.cost @ mix)
        delta = gain(transfer, room, self.size * mix, self.horizon)
        return reward(self.r, delta, self.beta, self.protected, self.lam, paid)


def gain(transfer: FloatArray, room: FloatArray, mix: FloatArray, horizon: float = 1.0) -> FloatArray:
    """What a mix adds to the scores: h (1 − (1 − T √w)ⁿ), which is h T √w for one decision.

    Args:
        transfer: (…, C, C) T; T_ij is what all of a decision's tokens, spent on j, add to i at a score of 0.
        room: (C,) h, what is left to learn, 1 − score.
        mix: (C,) shares w, times the tokens of a decision where those are others than T's.
        horizon: n decisions with the same mix.

    Returns:
        (…, C). No score falls below 0, or rises above 1.
    """
    return gained(room, left_out(transfer, mix) ** horizon)


def left_out(transfer: FloatArray, mix: FloatArray) -> FloatArray:
    """The share of what is left to learn that a decision leaves, (…, C); those of several multiply."""
    return np.asarray(np.maximum(1 - transfer @ np.sqrt(mix), 0))


def gained(room: FloatArray, left: FloatArray) -> FloatArray:
    """What is added to the scores where of h (C,) a share (…, C) is left."""
    return np.asarray(np.maximum(room * (1 - left), room - 1))


def best_mix(transfer: FloatArray, room: FloatArray, aim: Aim) -> FloatArray:
    """The mix with the largest reward for given T (C, C) and h (C,), to about 1e-7 in each share.

    What a score would lose below 0 counts here, as it does not in :func:`gain`. Where everything hurts, the
    problem is not convex, and the answer a mix that is not worse than the static one.
    """
    size = len(aim.r)
    static = project(aim.static, aim.floor)
    guarded = np.flatnonzero(aim.protected) if aim.protected is not None and aim.beta > 0 else np.zeros(0, int)
    cost = np.zeros(size) if aim.cost is None else aim.lam * (aim.cost - aim.cost.min())
    root, scaled = np.sqrt(static), np.sqrt(aim.size) * transfer
    # Points of one decision's tokens: the solver's tolerances are absolute.
    unit = np.abs((aim.r * room) @ scaled).max() * aim.horizon + cost.max() or 1.0

    def gains(u: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gains (C,), and their slopes in T u."""
        rest = np.maximum(1 - scaled @ u, 1e-9)
        return room * (1 - rest**aim.horizon), room * aim.horizon * rest ** (aim.horizon - 1)

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        u, lost = x[:size], x[size:]
        delta, slope = gains(u)
        value = aim.r @ delta - aim.beta * unit * aim.r[guarded] @ lost - cost @ u**2
        down = np.concatenate([2 * cost * u - (aim.r * slope) @ scaled, aim.beta * unit * aim.r[guarded]])
        return float(-value / unit), np.asarray(down / unit)

    def inside(x: FloatArray) -> FloatArray:
        u, lost = x[:size], x[size:]
        return np.concatenate([[1 - u @ u, u @ root - (1 - aim.trust)], lost + gains(u)[0][guarded] / unit])

    def inside_slope(x: FloatArray) -> FloatArray:
        u = x[:size]
        rows = np.zeros((2 + len(guarded), len(x)))
        rows[0, :size], rows[1, :size] = -2 * u, root
        rows[2:, :size] = (gains(u)[1][:, None] * scaled)[guarded] / unit
        rows[2:, size:] = np.eye(len(guarded))
        return rows

    found = minimize(
        loss,
        np.concatenate([root, np.maximum(-gains(root)[0][guarded] / unit, 0)]),
        jac=True,
        method="SLSQP",
        bounds=[(np.sqrt(aim.floor), 1.0)] * size + [(0.0, None)] * len(guarded),
        constraints={"type": "ineq", "fun": inside, "jac": inside_slope},
        options={"maxiter": 500, "ftol": 1e-15},  # below what it can reach: it ends where no step is better
    )
    u = np.clip(found.x[:size], 0, 1)
    if not u.any():
        return static
    mix = project(u**2 / (u @ u), aim.floor)
    better = aim.value(transfer, room, mix) > aim.value(transfer, room, static)
    return mix if better else static
