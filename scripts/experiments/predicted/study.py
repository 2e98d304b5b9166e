"""What each way of estimating pass rates is worth, against the truth: the regressions, the comparison, the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from paced_verl.pacing.kernel import Kernel, fit_prior
from scripts.experiments.predicted.priors import (
    Array,
    efficiency,
    fit_concentration,
    posterior_weights,
    predicted_rates,
)
from scripts.experiments.predicted.regimes import FEATURES, K

Row = dict[str, Any]
TEXT = ("family", "regime", "outcomes")


# The regressions.


class Logistic:
    """Logistic regression on standardised features."""

    def fit(self, features: Array, label: Array, sample_weight: Array) -> None:
        self.scaler = StandardScaler().fit(features)
        self.model = LogisticRegression(max_iter=1000)
        self.model.fit(self.scaler.transform(features), label, sample_weight=sample_weight)

    def predict_proba(self, features: Array) -> Array:
        return self.model.predict_proba(self.scaler.transform(features))


def boosting() -> Any:
    return HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, max_depth=3, min_samples_leaf=10, early_stopping=False, random_state=0
    )


MODELS: dict[str, Callable[[], Any]] = {"logistic": Logistic, "boosting": boosting}


def features(prompts: pa.Table) -> dict[str, Array]:
    """(N, F) for each of FEATURES, by what is paid: nothing, one forward pass a prompt, the teacher's samples besides.

    If the stored response is the only right one, the pass rate *is* its likelihood: so its log-odds are a feature.
    """
    column = {name: np.asarray(prompts[name], np.float64) for name in prompts.column_names if name not in TEXT}
    families = np.asarray(prompts["family"])
    length, likelihood = column["response_tokens"], np.minimum(column["log_likelihood"], -1e-6)
    right = column["teacher_correct"] > 0
    odds = np.clip(likelihood - np.log(-np.expm1(likelihood)), -20, 20)
    free = [column["prompt_tokens"], length, right, *(families == name for name in sorted(set(families))[1:])]
    forward = [*free, likelihood, likelihood / length, odds, odds * right]
    known = (free, forward, [*forward, column["teacher_correct"]])
    return {name: np.stack(columns, 1).astype(np.float64) for name, columns in zip(FEATURES, known, strict=True)}


# What each way of estimating gives.


class Cell:
    """One student and its prompts: what an estimate sees, and the truth it is held against.

    ``stored`` is the chance of the stored response, 0 if it is wrong: the least that the pass rate can be.
    """

    def __init__(self, prompts: pa.Table, seed: int) -> None:
        outcomes = np.array(prompts["outcomes"].to_pylist(), np.float64)
        self.outcomes, truth = outcomes[:, :K], outcomes[:, K:]
        half = truth.shape[1] // 2
        self.truth, self.rate = (truth[:, :half].mean(1), truth[:, half:].mean(1)), truth.mean(1)
        self.features, self.rng = features(prompts), np.random.default_rng(seed)
        self.stored = np.exp(np.asarray(prompts["log_likelihood"])) * (np.asarray(prompts["teacher_correct"]) > 0)
        self.quarter = self.rng.permutation(len(outcomes)) < len(outcomes) // 4

    def counts(self, samples: int, rows: Any = True) -> tuple[Array, Array]:
        """k and n of the first ``samples`` of the prompts of ``rows``; (0, 0) of others."""
        n = np.where(rows, float(samples), 0.0) * np.ones(len(self.rate))
        return np.where(n > 0, self.outcomes[:, :samples].sum(1), 0.0), n

    def common(self, k: Array, n: Array) -> Array:
        """Weights under one prior for all, as the product has them."""
        return Kernel(estimate="posterior", prior=fit_prior(k, n))(k, n)

    def predicted(self, model: str, known: str, k: Array, n: Array) -> tuple[Array, Array]:
        """Weights under a prior a prompt, and the means of these priors."""
        rates = predicted_rates(MODELS[model], self.features[known], k, n, self.rng)
        s = fit_concentration(rates, k, n)
        return posterior_weights(s * rates, s * (1 - rates), k, n), rates

    def row(self, price: float, way: str, weights: Array, rows: Any = slice(None), **more: Any) -> Row:
        """The table's row of the weights of ``rows``; relative to what K samples of each of the same prompts give."""
        truth = (self.truth[0][rows], self.truth[1][rows])
        reference = self.common(*self.counts(K))[rows]
        value = efficiency(weights[rows], truth)
        relative = value / efficiency(reference, truth)
        rank = correlation(weights[rows], self.rate[rows] * (1 - self.rate[rows]))
        return {"price": price, "way": way, "efficiency": value, "relative": relative, "rank": rank} | more

    def quality(self, rates: Array) -> Row:
        """Of the predictions for the prompts that were never sampled: rank correlation, Brier score, slope."""
        rates, truth = rates[~self.quarter], self.rate[~self.quarter]
        brier = np.mean((rates - truth) ** 2 + truth * (1 - truth))
        base = np.mean((truth.mean() - truth) ** 2 + truth * (1 - truth))
        return {
            "rate_rank": correlation(rates, truth),
            "brier": float(brier),
            "brier_of_the_mean": float(base),
            "slope": float(np.polyfit(rates, truth, 1)[0]) if np.ptp(rates) else float("nan"),
        }


def correlation(values: Array, truth: Array) -> float:
    """Of ranks; 0 where all values are the same."""
    return float(spearmanr(values, truth).statistic) if np.ptp(values) else 0.0


def compare(cell: Cell) -> Iterator[Row]:
    """A row for each way of estimating."""
    yield cell.row(0, "all alike", np.ones(len(cell.rate)))
    yield cell.row(0, "likelihood as the rate", cell.stored * (1 - cell.stored))
    for samples in (1, 2, 4, K):
        k, n = cell.counts(samples)
        yield cell.row(samples / K, f"{samples} each, as they are", Kernel()(k, n))
        yield cell.row(samples / K, f"{samples} each, one prior", cell.common(k, n))
    quarter = cell.counts(K, cell.quarter)
    yield cell.row(1 / 4, "8 of a quarter, one prior", cell.common(*quarter))
    for model in MODELS:
        for known in cell.features:
            said = {"model": model, "features": known}
            for samples in (1, 2):
                weights, _ = cell.predicted(model, known, *cell.counts(samples))
                yield cell.row(samples / K, f"{samples} each, predicted", weights, **said)
            weights, rates = cell.predicted(model, known, *quarter)
            yield cell.row(1 / 4, "8 of a quarter, predicted", weights, **said)
            yield cell.row(1 / 4, "never sampled, predicted", weights, ~cell.quarter, **said, **cell.quality(rates))


def study(samples: pa.Table) -> pa.Table:
    """The table: the rows of :func:`compare` for every regime and seed."""
    rows = []
    regimes, seeds = np.asarray(samples["regime"]), np.asarray(samples["seed"])
    for regime in dict.fromkeys(regimes.tolist()):
        for seed in sorted(set(seeds.tolist())):
            cell = Cell(samples.filter(pa.array((regimes == regime) & (seeds == seed))), seed)
            said = {"regime": regime, "seed": seed, "mean_rate": float(cell.rate.mean())}
            said["below_a_tenth"] = float((cell.rate < 0.1).mean())
            rows += [said | {"model": "", "features": ""} | row for row in compare(cell)]
        print(regime, flush=True)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
