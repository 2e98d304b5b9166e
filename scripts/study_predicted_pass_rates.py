"""Is a pass rate that a regression predicts worth anything? Students, samples, regressions, one table.

    pip install scikit-learn                                        # not needed by --check
    OMP_NUM_THREADS=1 python scripts/study_predicted_pass_rates.py  # writes the table, prints what the page shows
    python scripts/study_predicted_pass_rates.py --check            # the page shows what the committed table says

Samples are kept in ``outputs/`` and used again; ``study_students.py`` says how they come about.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from predicted_priors import Array, efficiency, fit_concentration, posterior_weights, predicted_rates
from scipy.stats import spearmanr

from paced_verl.pacing.kernel import Kernel, fit_prior
from paced_verl.statistics import estimate

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "outputs" / "predicted_pass_rates.parquet"
TABLE, PAGE = ROOT / "docs" / "experiments" / "predicted_pass_rates.parquet", ROOT / "docs" / "experiments.md"
K, SEEDS, RULE = 8, range(5), 0.95
BEGIN, END = "<!-- scripts/study_predicted_pass_rates.py -->", "<!-- end -->"
Row = dict[str, Any]


# The regressions.


class Logistic:
    """Logistic regression on standardised features."""

    def fit(self, features: Array, label: Array, sample_weight: Array) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler().fit(features)
        self.model = LogisticRegression(max_iter=1000)
        self.model.fit(self.scaler.transform(features), label, sample_weight=sample_weight)

    def predict_proba(self, features: Array) -> Array:
        return self.model.predict_proba(self.scaler.transform(features))


def boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, max_depth=3, min_samples_leaf=10, early_stopping=False, random_state=0
    )


MODELS: dict[str, Callable[[], Any]] = {"logistic": Logistic, "boosting": boosting}


def features(prompts: pa.Table) -> dict[str, Array]:
    """(N, F) by what is paid for them: nothing, one forward pass a prompt, or the teacher's samples besides.

    If the stored response is the only right one, the pass rate *is* its likelihood: so its log-odds are a feature.
    """
    column = {name: np.asarray(prompts[name], np.float64) for name in prompts.column_names if name not in TEXT}
    families = np.asarray(prompts["family"])
    length, likelihood = column["response_tokens"], np.minimum(column["log_likelihood"], -1e-6)
    right = column["teacher_correct"] > 0
    odds = np.clip(likelihood - np.log(-np.expm1(likelihood)), -20, 20)
    free = [column["prompt_tokens"], length, right, *(families == name for name in sorted(set(families))[1:])]
    forward = [*free, likelihood, likelihood / length, odds, odds * right]
    known = {"lengths and source": free, "with likelihood": forward}
    known["with teacher's rate"] = [*forward, column["teacher_correct"]]
    return {name: np.stack(columns, 1).astype(np.float64) for name, columns in known.items()}


TEXT = ("family", "regime", "outcomes")
PAID = ("lengths and source", "with likelihood", "with teacher's rate")


# What each way of estimating gives.


class Cell:
    """One student and its prompts: what an estimate sees, and the truth it is held against."""

    def __init__(self, prompts: pa.Table, seed: int) -> None:
        outcomes = np.array(prompts["outcomes"].to_pylist(), np.float64)
        self.outcomes, truth = outcomes[:, :K], outcomes[:, K:]
        half = truth.shape[1] // 2
        self.truth, self.rate = (truth[:, :half].mean(1), truth[:, half:].mean(1)), truth.mean(1)
        self.features, self.rng = features(prompts), np.random.default_rng(seed)
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
        order = (
            spearmanr(weights[rows], self.rate[rows] * (1 - self.rate[rows])).statistic if np.ptp(weights[rows]) else 0
        )
        relative = value / efficiency(reference, truth)
        return {"price": price, "way": way, "efficiency": value, "relative": relative, "rank": float(order)} | more

    def quality(self, rates: Array) -> Row:
        """Of the predictions for the prompts that were never sampled: rank correlation, Brier score, slope."""
        rates, truth = rates[~self.quarter], self.rate[~self.quarter]
        brier = np.mean((rates - truth) ** 2 + truth * (1 - truth))
        base = np.mean((truth.mean() - truth) ** 2 + truth * (1 - truth))
        return {
            "rate_rank": float(spearmanr(rates, truth).statistic) if np.ptp(rates) else 0.0,
            "brier": float(brier),
            "brier_of_the_mean": float(base),
            "slope": float(np.polyfit(rates, truth, 1)[0]) if np.ptp(rates) else float("nan"),
        }


def compare(cell: Cell) -> Iterator[Row]:
    """A row for each way of estimating."""
    yield cell.row(0, "all alike", np.ones(len(cell.rate)))
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


# The page.


def mean(table: list[Row], value: str, **where: str) -> str:
    """``value`` over the seeds, with its 95 % interval (t)."""
    found = estimate([row[value] for row in table if all(row[name] == is_ for name, is_ in where.items())])
    return f"{found.mean:.2f} ± {found.interval[1] - found.mean:.2f}"


def grid(table: list[Row], columns: dict[str, tuple[str, Row]]) -> str:
    """A row a regime; a column is a value of the table and which of its rows are meant."""
    regimes = dict.fromkeys(row["regime"] for row in table)
    rows = [[r, *(mean(table, value, regime=r, **where) for value, where in columns.values())] for r in regimes]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [["student", *columns], ["---"] * (1 + len(columns)), *rows]
    )


def verdicts(table: list[Row]) -> str:
    """The rule for each way that costs a quarter: in how many regimes it holds, and its worst."""
    rows = [["way", "regression", "features", "regimes with mean ≥ .95", "whole interval ≥ .95", "worst regime"]]
    rows.append(["---"] * len(rows[0]))
    regimes = dict.fromkeys(row["regime"] for row in table)
    ways = dict.fromkeys((row["way"], row["model"], row["features"]) for row in table if row["price"] == 1 / 4)
    for way in ways:
        if way[0].startswith("never"):
            continue
        found = {r: estimate([x["relative"] for x in table if (x["regime"], *named(x)) == (r, *way)]) for r in regimes}
        worst = min(found, key=lambda regime: found[regime].mean)
        counts = [
            sum(each.mean >= RULE for each in found.values()),
            sum(each.interval[0] >= RULE for each in found.values()),
        ]
        rows.append([*way, *(f"{count} of {len(found)}" for count in counts), f"{found[worst].mean:.2f}, {worst}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def named(row: Row) -> tuple[str, str, str]:
    return row["way"], row["model"], row["features"]


def shown(table: list[Row]) -> str:
    """The page's tables."""
    plain = ("1 each, one prior", "2 each, one prior", "4 each, one prior", "8 of a quarter, one prior")
    without = {
        "mean pass rate": ("mean_rate", {"way": "all alike"}),
        "cos² of 8 each": ("efficiency", {"way": "8 each, one prior"}),
        **{
            way: ("relative", {"way": way})
            for way in ("all alike", *plain, "2 each, as they are", "8 each, as they are")
        },
    }
    priced = {"2 each, one prior": ("relative", {"way": "2 each, one prior"})}
    for way in ("2 each", "8 of a quarter"):
        for known in PAID:
            priced[f"{way}, {known}"] = (
                "relative",
                {"way": f"{way}, predicted", "model": "logistic", "features": known},
            )
    unseen = {"way": "never sampled, predicted", "model": "logistic", "features": PAID[1]}
    names = ("relative", "rate_rank", "brier", "brier_of_the_mean", "slope")
    labels = ("relative efficiency", "rank correlation", "Brier", "Brier of the mean", "slope")
    quality = {label: (name, unseen) for label, name in zip(labels, names, strict=True)}
    parts = {
        "Without a regression, relative to 8 samples of every prompt": grid(table, without),
        "A quarter of the rollouts and a logistic regression, relative to 8 samples of every prompt": grid(
            table, priced
        ),
        "The rule, for every way that costs a quarter": verdicts(table),
        "Prompts that were never sampled, logistic regression with likelihood": grid(table, quality),
    }
    return "\n\n".join(f"{title}:\n\n{part}" for title, part in parts.items())


def collect(path: Path) -> pa.Table:
    """The samples of ``path``, taken first if there are none."""
    if not path.exists():
        import torch
        from study_students import laboratory

        torch.set_num_threads(1)  # at these sizes threads cost more than they give
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(laboratory(SEEDS))), path)
    return pq.read_table(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="taken if the file is not there")
    parser.add_argument("--check", action="store_true", help="only compare the page with the committed table")
    args = parser.parse_args()
    before, rest = PAGE.read_text().split(BEGIN)
    on_page, after = rest.split(END)
    if args.check:
        same = on_page.strip() == shown(pq.read_table(TABLE).to_pylist())
        sys.exit(0 if same else f"{PAGE.name} does not show what {TABLE.name} says: run the study again")
    TABLE.parent.mkdir(exist_ok=True)
    pq.write_table(study(collect(args.samples)), TABLE)
    text = shown(pq.read_table(TABLE).to_pylist())
    print(text)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
