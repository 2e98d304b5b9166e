"""SNR by bin against gradients with known means and variances, the formulas as they are written, and the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paced_verl.diagnostics import snr
from paced_verl.diagnostics.snr import BINS, MIDPOINTS, THEORY, bins_of, fit_exponents, measure, moments, plain
from paced_verl.report.snr import draw

SIZE = 60


def gradients(count: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(n, D) with ‖E g‖ / sqrt(E ‖g − E g‖²) = ratio."""
    return ratio * np.eye(SIZE)[0] + rng.normal(size=(count, SIZE)) / np.sqrt(SIZE)


def by_definition(g: np.ndarray) -> float:
    """The paper's SNR."""
    mean = g.mean(axis=0)
    return float(np.linalg.norm(mean) / np.sqrt(np.mean(np.sum((g - mean) ** 2, axis=1))))


def curve_of(grams: list[np.ndarray], seed: int = 0) -> snr.Snr:
    return measure([*grams, *[np.zeros((0, 0))] * (BINS - len(grams))], None, seed)


@pytest.mark.parametrize("count", [2, 3, 17])
def test_the_papers_estimator_is_its_formula(count: int) -> None:
    g = gradients(count, 0.8, np.random.default_rng(count))
    found = curve_of([g @ g.T])
    assert found.plain.snr[0] == pytest.approx(by_definition(g))
    assert np.isnan(found.plain.snr[1:]).all()
    assert found.problems.tolist() == [count, *[0] * 9]


def test_moments_are_means_over_pairs_of_different_problems() -> None:
    g = np.random.default_rng(0).normal(size=(5, 3))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    found = moments(g @ g.T)
    assert found.signal == pytest.approx(np.mean([g[i] @ g[j] for i, j in pairs]))
    assert found.noise == pytest.approx(np.mean([np.sum((g[i] - g[j]) ** 2) / 2 for i, j in pairs]))
    assert found.noise == pytest.approx(np.var(g, axis=0, ddof=1).sum())


def test_a_problem_that_was_drawn_twice_is_not_paired_with_itself() -> None:
    g = np.random.default_rng(1).normal(size=(4, 3))
    counts = np.array([[2.0, 0.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]])
    found = moments(g @ g.T, counts)
    drawn = [0, 0, 2, 3]
    pairs = [(i, j) for a, i in enumerate(drawn) for b, j in enumerate(drawn) if a != b and i != j]
    assert found.signal[0] == pytest.approx(np.mean([g[i] @ g[j] for i, j in pairs]))
    assert found.noise[0] == pytest.approx(np.mean([np.sum((g[i] - g[j]) ** 2) / 2 for i, j in pairs]))
    assert np.isnan(found.snr2[1])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_without_noise_snr_is_right_on_average_where_the_papers_is_too_large(ratio: float) -> None:
    rng, count = np.random.default_rng(2), 8
    samples = [gradients(count, ratio, rng) for _ in range(2000)]
    found = [moments(g @ g.T) for g in samples]
    assert np.mean([m.signal for m in found]) == pytest.approx(ratio**2, abs=0.01)
    assert np.mean([m.noise for m in found]) == pytest.approx(1, abs=0.01)
    squares = np.mean([by_definition(g) ** 2 for g in samples])
    assert squares > ratio**2 + 0.9 / count, "noise adds 1/n to the length of the mean"


def test_the_estimators_are_functions_of_each_other() -> None:
    g = gradients(9, 0.5, np.random.default_rng(3))
    corrected = moments(g @ g.T).snr2
    r = by_definition(g) ** 2
    assert corrected == pytest.approx((8 * r - 1) / 9)
    assert plain(corrected, 9) == pytest.approx(r)


def test_the_papers_bars_give_the_papers_exponents() -> None:
    """Bars read off its picture, and the exponents that it prints."""
    first = np.array([0.66, 0.77, 0.89, 0.97, 1, 1, 0.96, 0.89, 0.73, 0.52])
    later = np.array([0.56, 0.77, 0.88, 0.95, 1, 0.98, 0.94, 0.85, 0.67, 0.51])
    assert fit_exponents(first**2) == pytest.approx([0.59, 0.71], abs=0.01)
    assert fit_exponents(later**2) == pytest.approx([0.71, 0.79], abs=0.015)


def test_theory_has_exponents_of_one() -> None:
    assert fit_exponents(7 * THEORY**2) == pytest.approx([1, 1])


def test_bins_without_agreement_are_left_out_of_the_fit_and_two_are_too_few() -> None:
    values = 3 * MIDPOINTS**0.5 * (1 - MIDPOINTS) ** 2
    values[[0, 4, 7]] = [np.nan, -0.1, 0.0]
    assert fit_exponents(values) == pytest.approx([0.5, 2])
    values[3:] = np.nan
    assert np.isnan(fit_exponents(values)).all()


def test_intervals_cover_what_the_gradients_were_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponents (1, 0.5), 60 measurements of 30 problems a bin: 95 % within the limits of counting."""
    monkeypatch.setattr(snr, "REPLICATES", 200)
    rng, true = np.random.default_rng(4), np.sqrt(MIDPOINTS * np.sqrt(1 - MIDPOINTS))
    found = [curve_of([(g := gradients(30, ratio, rng)) @ g.T for ratio in true], seed) for seed in range(60)]
    inside = [
        (c.corrected.exponent_intervals[0] <= [1, 0.5]) & (c.corrected.exponent_intervals[1] >= [1, 0.5]) for c in found
    ]
    bins = [(c.corrected.interval[0] <= true) & (true <= c.corrected.interval[1]) for c in found]
    assert 0.85 <= np.mean(inside) <= 1
    assert 0.88 <= np.mean(bins) <= 0.99
    assert np.mean([c.corrected.exponents for c in found], axis=0) == pytest.approx([1, 0.5], abs=0.05)
    flat = np.mean([c.plain.exponents for c in found], axis=0)
    assert (flat < [0.97, 0.48]).all(), "noise makes the paper's curve flatter"


def test_the_papers_intervals_are_those_without_noise_at_its_own_height() -> None:
    g = gradients(12, 0.7, np.random.default_rng(5))
    found = curve_of([g @ g.T])
    assert found.plain.interval[:, 0] ** 2 == pytest.approx(plain(found.corrected.interval[:, 0] ** 2, 12))
    assert found.plain.interval[0, 0] < found.plain.snr[0] < found.plain.interval[1, 0]


def test_what_the_projection_leaves_is_how_far_the_papers_snr_moves() -> None:
    """Against a small change of the mean's squared length, by finite difference."""
    g = gradients(7, 0.6, np.random.default_rng(6))
    gram = g @ g.T
    off = snr.off_diagonal_error(gram, 500) / 49
    step = 1e-6 * (1 - np.eye(7)) / 42
    moved = gram + 49 * step
    slope = (np.sqrt(plain(moments(moved).snr2, 7)) - np.sqrt(plain(moments(gram).snr2, 7))) / 1e-6
    assert measure([gram] + [np.zeros((0, 0))] * 9, 500).projection_error[0] == pytest.approx(slope * off, rel=1e-3)
    assert measure([gram] + [np.zeros((0, 0))] * 9, None).projection_error[0] == 0


def test_every_k_of_ten_is_in_its_bin() -> None:
    k = np.arange(11, dtype=np.float32)
    assert bins_of(k, np.full(11, 10, np.float32)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert bins_of([0.0, 1.0, 3.0], [0.0, 3.0, 3.0]).tolist() == [-1, 3, 9]


def test_bins_that_hold_one_problem_or_none_say_nothing() -> None:
    g = gradients(1, 1.0, np.random.default_rng(7))
    found = curve_of([g @ g.T])
    assert np.isnan(found.plain.snr).all()
    assert np.isnan(found.corrected.interval).all()
    assert np.isnan(found.corrected.exponents).all()
    assert found.plain.scale == 1


def test_the_largest_bin_is_one() -> None:
    rng = np.random.default_rng(8)
    found = curve_of([(g := gradients(20, ratio, rng)) @ g.T for ratio in (0.4, 0.9, 0.6)])
    assert found.corrected.scaled[:3].max() == found.corrected.scaled[1] == 1
    assert found.corrected.scaled[0] == pytest.approx(found.corrected.snr[0] / found.corrected.snr[1])


@pytest.mark.parametrize("dimensions", [None, 64])
@pytest.mark.parametrize("length", [0.0, 3.0])
def test_gradients_that_are_all_the_same_are_no_error(dimensions: int | None, length: float, tmp_path: Path) -> None:
    """As of rows that a data set holds twice, or of a student that is its own teacher."""
    same, rng = np.tile(length * np.eye(SIZE)[0], (3, 1)), np.random.default_rng(9)
    others = [gradients(9, ratio, rng) for ratio in (0.4, 0.9, 0.6)]
    found = measure([g @ g.T for g in (same, *others)] + [np.zeros((0, 0))] * 6, dimensions)
    assert found.corrected.snr[0] == np.inf if length else np.isnan(found.corrected.snr[0])
    assert found.corrected.bins == 3, "there is no logarithm of it"
    assert np.isfinite(found.corrected.exponents).all()
    assert found.corrected.scale == np.max(found.corrected.snr[1:4])
    assert np.isnan(found.projection_error[0]) or dimensions is None
    draw(found, tmp_path / "snr.png", "title")


def test_a_sketch_that_makes_a_mean_longer_than_its_gradients_is_no_error() -> None:
    gram = np.array([[1.0, 1.01], [1.01, 1.0]])
    found = measure([gram] + [np.zeros((0, 0))] * 9, 64)
    assert found.corrected.snr[0] == np.inf, "no noise that could be told from the projection's"
    assert np.isnan(found.projection_error[0])


def test_two_problems_have_no_interval() -> None:
    """Drawn anew they are the same two, or say nothing: an interval of no width would claim certainty."""
    rng = np.random.default_rng(10)
    found = curve_of([(g := gradients(count, 0.8, rng)) @ g.T for count in (2, 3)])
    assert np.isfinite(found.plain.snr[:2]).all()
    for curve in (found.plain, found.corrected):
        assert np.isnan(curve.interval[:, 0]).all()
        assert (curve.interval[0, 1], curve.interval[1, 1]) != (curve.snr[1], curve.snr[1])
