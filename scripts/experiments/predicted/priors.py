"""A Beta prior for each prompt from a regression of its pass rate, and how good the weights are that come out.

The pure part of the study. N prompts, k of n samples correct; what was never sampled has
n = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[np.float64]
FOLDS = 5
EDGE = 1e-3  # a predicted rate stays this far from 0 and 1, so that one rollout can still contradict it


def predicted_rates(make: Callable[[], Any], features: Array, k: Array, n: Array, rng: np.random.Generator) -> Array:
    """The regression's mean pass rate of each prompt, from other prompts' samples alone.

    A sampled prompt is predicted by the folds that it is not in: its own samples come in once, by the posterior.

    Args:
        make: A scikit-learn classifier with ``sample_weight``, anew at each call.
        features: (N, F).
        k: (N,) correct samples.
        n: (N,) samples; 0 where a prompt was never sampled.
        rng: Deals the prompts into folds.
    """
    fold = np.where(n > 0, rng.permutation(len(n)) % FOLDS, FOLDS)
    rates = np.empty(len(n))
    for held_out in range(FOLDS + 1):
        rows = fold == held_out
        if rows.any():
            rates[rows] = _predict(make(), features[rows], features[~rows], k[~rows], n[~rows])
    return np.clip(rates, EDGE, 1 - EDGE)


def _predict(model: Any, asked: Array, features: Array, k: Array, n: Array) -> Array:
    """The mean rates of ``asked`` by ``model``, fitted to a success of weight k and a failure of weight n − k a prompt.

    Where all samples succeed, or none does, there is nothing to regress: all rates are (Σk + ½) / (Σn + 1).
    """
    if not 0 < k.sum() < n.sum():
        return np.full(len(asked), (k.sum() + 0.5) / (n.sum() + 1))
    label, weight = np.repeat([1, 0], len(k)), np.concatenate([k, n - k])
    seen = weight > 0  # what was never sampled is left out here
    model.fit(np.concatenate([features, features])[seen], label[seen], sample_weight=weight[seen])
    return model.predict_proba(asked)[:, 1]


def fit_concentration(rates: Array, k: Array, n: Array) -> float:
    """s > 0 of the priors Beta(s μ_i, s (1 − μ_i)) that makes k of n likeliest (beta-binomial), within [.1, 1e4]."""
    rates, k, n = rates[n > 0], k[n > 0], n[n > 0]

    def loss(log_s: float) -> float:
        a, b = np.exp(log_s) * rates, np.exp(log_s) * (1 - rates)
        return float(np.sum(special.betaln(a, b) - special.betaln(a + k, b + n - k)))

    return float(np.exp(optimize.minimize_scalar(loss, bounds=np.log([0.1, 1e4]), method="bounded").x))


def posterior_weights(a: Array, b: Array, k: Array, n: Array) -> Array:
    """E[p(1 − p) | k of n] for p_i ~ Beta(a_i, b_i): what Kernel(estimate="posterior") is with a prior a prompt."""
    a, b = a + k, b + n - k
    return a * b / ((a + b) * (a + b + 1))


def efficiency(weights: Array, rates: tuple[Array, Array]) -> float:
    """cos² of weights and the true p(1 − p): of what a step by the true weights gains, the share that this one does.

    The gradients of all prompts count as equally long and independent, as in ``paced_verl.diagnostics.weights``; 0 for
    weights that are all 0. The truth comes as two independent estimates of the pass rates: products of the two are
    free of their noise, but for the constant factor of p̂(1 − p̂), which cancels.
    """
    first, second = (rate * (1 - rate) for rate in rates)
    square = float(weights @ weights) * float(first @ second)
    return float(weights @ first) * float(weights @ second) / square if square else 0.0
