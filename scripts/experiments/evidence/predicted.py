"""Pass rates that a regression predicts: the best way of the study of predicted pass rates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from scripts.experiments.predicted.priors import Array, fit_concentration, predicted_rates
from scripts.experiments.predicted.regimes import FEATURES
from scripts.experiments.predicted.study import Logistic, features


def counts(
    lengths: Array, responses: Array, right: Array, likelihood: Array, k: Array, samples: int, seed: int
) -> tuple[Array, Array]:
    """Counts, correct and all, whose rates are the posterior means under a prior a prompt.

    The prior's mean is predicted from other prompts, its width is fitted to all. All prompts count as many samples, so
    that p̂(1 − p̂) is the posterior's E[p(1 − p)] but for a factor that they share.

    Args:
        lengths, responses: (N,) tokens of the prompts, and of the response that is stored for each.
        right: (N,) whether the verifier takes that response.
        likelihood: (N,) the student's of that response, in nats, summed over its tokens.
        k: (N,) correct ones of the student's samples.
        samples: Of each prompt.
        seed: Deals the prompts into folds.
    """
    known = pa.table(
        {
            "family": ["one"] * len(k),
            "prompt_tokens": lengths,
            "response_tokens": responses,
            "teacher_correct": right,
            "log_likelihood": likelihood,
        }
    )
    n = np.full(len(k), float(samples))
    rates = predicted_rates(Logistic, features(known)[FEATURES[1]], k, n, np.random.default_rng(seed))
    s = fit_concentration(rates, k, n)
    return s * rates + k, s + n
