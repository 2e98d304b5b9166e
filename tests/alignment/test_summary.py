"""Numbers of a measurement whose truth was planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from paced_verl.alignment import summary
from paced_verl.alignment.nodes import Node, TopOf, node, on_support, stacked
from paced_verl.alignment.result import Measured, align
from paced_verl.alignment.score import Interval

QUESTIONS, EACH = 12, 10


def planted(sign: np.ndarray, visits: int = 400, seed: int = 0) -> Measured:
    """Nodes at which a teacher is as right (1) or as wrong (−1) as it can be, under reverse KL."""
    rng = np.random.default_rng(seed)
    nodes, n, k = [], [], []
    for i in range(QUESTIONS * EACH):
        p, rates = rng.dirichlet(np.full(3, 5.0)), rng.permutation([0.2, 0.5, 0.8])
        q = p * np.exp(sign[i] * 2 * rates)
        nodes.append(
            Node(
                question=i // EACH,
                carrier=i % EACH,
                position=40 + 2 * (i % EACH),
                inclusion=0.5,
                tokens=np.arange(3),
                student=np.log(p),
                teachers=np.log(q / q.sum())[None],
                known=np.zeros((1, 5)),
            )
        )
        n.append(np.full(3, float(visits)))
        k.append(rng.binomial(visits, rates).astype(float))
    counts, hits = np.array(n), np.array(k)
    rate = hits / counts
    return Measured(nodes, counts, hits, rate, rate * (1 - rate) / (counts - 1), {})


def test_a_teacher_that_is_always_right() -> None:
    found = planted(np.ones(QUESTIONS * EACH))
    (one,) = align(found, ["t"], ["reverse_kl"], [], "kept")
    teacher = stacked(found.nodes)[1][0]
    numbers = summary.of_teacher(one, found, teacher, np.random.default_rng(0))
    assert numbers.aggregate.value == pytest.approx(1, abs=0.02)
    assert numbers.naive.value > 0.95
    assert numbers.positive.value == 1
    assert numbers.advantage.low > 0
    assert numbers.natural.low > 0
    assert numbers.reliability > 0.8
    assert (numbers.nodes, numbers.undefined) == (120, 0)


def test_a_teacher_that_is_right_where_the_response_has_failed() -> None:
    wrong = np.arange(QUESTIONS * EACH) % 2 == 0
    found = planted(np.where(wrong, 1.0, -1.0))
    (one,) = align(found, ["t"], ["reverse_kl"], [], "kept")
    both = summary.outcomes(one, found, ~wrong)
    assert both is not None
    assert (both.correct.value, both.wrong.value) == (pytest.approx(-1, abs=0.03), pytest.approx(1, abs=0.03))
    assert both.gap.value == pytest.approx(2, abs=0.05)
    assert both.gap.differs
    assert both.matched_gap.value == pytest.approx(2, abs=0.05)
    assert summary.outcomes(one, found, np.ones(120, bool)) is None


def test_by_depth_and_by_pass_rate() -> None:
    deep = 40 + 2 * (np.arange(QUESTIONS * EACH) % EACH) >= 50
    found = planted(np.where(deep, 1.0, -1.0))
    (one,) = align(found, ["t"], ["reverse_kl"], [], "kept")
    windows = summary.by_window(one, found)
    assert {w: round(v.value) for w, v in windows.items()} == {0: -1, 1: 1}
    rates = {question: question / QUESTIONS for question in range(QUESTIONS)}
    assert sorted(summary.by_pass_rate(one, rates)) == [0, 1, 2, 3, 4]
    assert summary.by_pass_rate(one, dict.fromkeys(rates, 1.0)).keys() == {4}


def test_full_support_is_the_kept_one_where_nothing_is_left_over() -> None:
    found = planted(np.ones(QUESTIONS * EACH))
    (kept,), (full,) = (align(found, ["t"], ["reverse_kl"], [], support) for support in ("kept", "full"))
    np.testing.assert_allclose(full.cosine, kept.cosine, atol=1e-5)
    lost = np.log(0.5)
    nodes = [replace(each, student=each.student + lost, teachers=each.teachers + lost) for each in found.nodes]
    half = replace(found, nodes=nodes)
    (kept,), (full,) = (align(half, ["t"], ["reverse_kl"], [], support) for support in ("kept", "full"))
    np.testing.assert_allclose(full.scores.gg, kept.scores.gg / 4, rtol=1e-6)
    np.testing.assert_allclose(full.scores.noise, kept.scores.noise / 4, rtol=1e-6)


def test_teachers_that_know_nothing_stand_behind_the_others() -> None:
    found = planted(np.ones(QUESTIONS * EACH))
    everyone = align(found, ["t"], ["reverse_kl"], ["sharpen", "uniform", "shuffle"], "kept")
    assert [one.teacher for one in everyone] == ["t", "sharpen", "uniform", "shuffle"]
    assert abs(everyone[-1].scores.dot.mean()) < 0.3 * everyone[0].scores.dot.mean()
    for one in align(found, ["t"], ["reverse_kl"], ["sharpen", "suppress"], "full"):
        assert np.isfinite(one.scores.dd).all()


def test_tokens_that_nobody_named_share_what_is_left() -> None:
    top = TopOf(np.array([4, 7]), np.log([0.6, 0.3]))
    np.testing.assert_allclose(np.exp(top.of(np.array([7, 4, 0]), 12)), [0.3, 0.6, 0.01])
    made = node((0, 1, 2, 0.5), top, [TopOf(np.array([4, 9]), np.log([0.1, 0.9])), None], 12, 0.02, 8)
    assert made.tokens.tolist() == [9, 4, 7]
    np.testing.assert_allclose(np.exp(made.student), [0.01, 0.6, 0.3])
    assert np.isnan(made.teachers[1]).all()
    np.testing.assert_allclose(np.exp(on_support(made.student, "full"))[-1], 0.09, atol=1e-6)


def test_holm_is_statsmodels() -> None:
    p = [0.01, 0.04, float("nan"), 0.03, 0.005]
    expected = multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1]
    found = summary.holm(p)
    assert np.isnan(found[2])
    np.testing.assert_allclose(np.delete(found, 2), expected)


def test_an_interval_says_what_it_is() -> None:
    one = Interval(0.5, 0.1, 21)
    assert one.half_width == pytest.approx(0.2086, abs=1e-4)
    assert one.differs
    assert one.p == pytest.approx(6.87e-5, rel=0.01)
