from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paced_verl.evaluate import write_json
from paced_verl.statistics import estimate, paired


def test_counts_give_the_binomial_error() -> None:
    # Of 0 and 1 with k ones in n, std(ddof=1)² = k (n − k) / (n (n − 1)).
    n, k = 50, 20
    found = estimate([1.0] * k + [0.0] * (n - k))
    assert (found.units, found.mean) == (n, 0.4)
    assert found.standard_error == pytest.approx(math.sqrt(k * (n - k) / (n * (n - 1)) / n), rel=1e-12)


def test_the_interval_has_students_quantile() -> None:
    # Two units: the quantile of t(1), the Cauchy distribution, is tan(.475 π) = 12.706.
    found = estimate([0.0, 1.0])
    assert found.interval == pytest.approx((0.5 - 0.5 * 12.7062047362, 0.5 + 0.5 * 12.7062047362))


def test_paired_error_by_counts_of_questions_lost_and_gained() -> None:
    # n questions, b only right before, c only right after: d = b/n − c/n, n² var(d) = (b + c − (b − c)²/n) n/(n − 1).
    both, lost, gained, neither = 900, 60, 40, 1000
    before = np.repeat([1, 1, 0, 0], [both, lost, gained, neither])
    after = np.repeat([1, 0, 1, 0], [both, lost, gained, neither])
    n = len(before)
    found = paired(before, after)
    assert found.mean == pytest.approx(0.01)
    variance = (lost + gained - (lost - gained) ** 2 / n) / (n * (n - 1))
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12)
    unpaired = math.hypot(estimate(before).standard_error, estimate(after).standard_error)
    assert found.standard_error < unpaired / 3


def test_paired_error_by_bootstrap() -> None:
    rng = np.random.default_rng(0)
    skill = rng.uniform(size=400)
    before, after = (rng.uniform(size=400) < skill).astype(float), (rng.uniform(size=400) < skill * 0.9).astype(float)
    drawn = rng.integers(0, 400, size=(20_000, 400))
    bootstrap = (before - after)[drawn].mean(axis=1)
    found = paired(before, after)
    assert found.standard_error == pytest.approx(bootstrap.std(), rel=0.03)
    assert found.interval == pytest.approx(np.quantile(bootstrap, [0.025, 0.975]), abs=0.1 * found.standard_error)


def test_the_same_answers_differ_by_exactly_nothing() -> None:
    answers = np.random.default_rng(1).uniform(size=37)
    found = paired(answers, answers)
    assert (found.mean, found.standard_error, found.interval) == (0.0, 0.0, (0.0, 0.0))


def test_one_unit_has_no_error_and_none_is_refused(tmp_path: Path) -> None:
    alone = estimate([0.25])
    assert alone.mean == 0.25
    assert math.isnan(alone.standard_error)
    write_json(tmp_path / "new" / "out.json", {"error": alone.standard_error, "interval": alone.interval})
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == {"error": None, "interval": [None, None]}
    with pytest.raises(ValueError, match="at least one unit"):
        estimate([])
    with pytest.raises(ValueError, match="same units"):
        paired([1.0, 0.0], [1.0])
