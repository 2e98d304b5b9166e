"""The comparison on prompts whose pass rate is known: it must see that a prediction helps, and that there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scripts.experiments.predicted.regimes import PROMPTS, TRUTH, K

pytest.importorskip("sklearn", reason="scripts/setup_cpu.sh installs scikit-learn")

from scripts.experiments.predicted import study


def prompts(says: bool) -> pa.Table:
    """Pass rates of all sizes; the log-likelihood says them, or is noise; lengths say nothing."""
    rng = np.random.default_rng(0)
    rate = rng.beta(0.4, 1.2, PROMPTS).clip(1e-3, 1 - 1e-3)
    columns: dict[str, Any] = {
        "family": ["words"] * PROMPTS,
        "prompt_tokens": rng.integers(5, 10, PROMPTS),
        "response_tokens": rng.integers(3, 9, PROMPTS),
        "log_likelihood": np.log(rate if says else rng.permutation(rate)),
        "teacher_correct": np.full(PROMPTS, 4),
        "outcomes": (rng.uniform(size=(PROMPTS, K + TRUTH)) < rate[:, None]).tolist(),
    }
    return pa.table(columns)


def test_a_likelihood_that_says_the_rate_is_better_than_eight_samples(monkeypatch) -> None:
    monkeypatch.setattr(study, "MODELS", {"logistic": study.Logistic})  # trees take as long as the rest of these tests
    rows = {(row["way"], row.get("features")): row for row in study.compare(study.Cell(prompts(says=True), seed=0))}
    assert rows["likelihood as the rate", None]["efficiency"] == pytest.approx(1, abs=0.02)
    assert rows["8 each, one prior", None]["relative"] == 1
    for way in ("2 each, predicted", "8 of a quarter, predicted", "never sampled, predicted"):
        assert rows[way, "with likelihood"]["relative"] > 1.03
        assert rows[way, "lengths and source"]["relative"] < 0.95
    assert rows["never sampled, predicted", "with likelihood"]["slope"] == pytest.approx(1, abs=0.15)


def test_a_likelihood_that_is_noise_is_no_better_than_one_prior() -> None:
    cell = study.Cell(prompts(says=False), seed=0)
    counts = cell.counts(2)
    weights, _ = cell.predicted("logistic", "with likelihood", *counts)
    prior = study.efficiency(cell.common(*counts), cell.truth)
    assert study.efficiency(weights, cell.truth) == pytest.approx(prior, abs=0.05)
