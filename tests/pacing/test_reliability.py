"""What the teacher's own pass rate makes of a prompt's weight."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.reliability import Reliability, two_way, wasted
from paced_verl.pacing.sampler import PassRateSampler


def table(successes: list[int], samples: list[int]) -> PassRateTable:
    made = PassRateTable(len(samples))
    made.observe(np.arange(len(samples)), successes, samples, step=1)
    return made


TEACHER = table([0, 1, 2, 3, 4, 0], [4, 4, 4, 4, 4, 0])
"""r = 0, ¼, ½, ¾, 1, and not known."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gate", [0, 0, 0.2, 0.2, 0.2, 0.2]),
        ("product", [0, 0.05, 0.1, 0.15, 0.2, 0.2]),
        ("min", [0, 0.0625, 0.125, 0.1875, 0.2, 0.2]),
        (None, [0.2] * 6),
    ],
)
def test_each_rule_is_what_its_formula_says(rule: str | None, expected: list[float]) -> None:
    weighed = Reliability(TEACHER, rule)(np.full(6, 0.2), slice(None), peak=0.25)  # type: ignore[arg-type]
    np.testing.assert_allclose(weighed, expected)


@pytest.mark.parametrize("rule", ["gate", "product", "min"])
def test_a_prompt_that_nobody_judged_weighs_what_it_did(rule: str) -> None:
    """Also above W, which is looked for on a grid: a kernel of one's own may be higher between its points."""
    weighed = Reliability(TEACHER, rule)(np.full(6, 0.3), slice(None), peak=0.25)  # type: ignore[arg-type]
    assert weighed[5] == 0.3


def test_where_the_gate_shuts_out_everything_it_is_named() -> None:
    student, teacher = table([2] * 3, [4] * 3), table([0] * 3, [4] * 3)
    with pytest.raises(ValueError, match=r"weight\.teacher: gate"):
        PassRateSampler(student, Kernel(), teacher=Reliability(teacher, "gate"))
    with pytest.raises(ValueError, match="every prompt has weight 0") as error:
        PassRateSampler(table([0] * 3, [4] * 3), Kernel(), teacher=Reliability(teacher, None))
    assert "weight.teacher" not in str(error.value)


@pytest.mark.parametrize("rule", ["gate", "product", "min"])
def test_what_the_teacher_never_solves_weighs_0_although_nobody_asked_the_student(rule: str) -> None:
    weighed = Reliability(TEACHER, rule)(np.full(3, np.nan), np.array([5, 0, 4]), peak=0.25)  # type: ignore[arg-type]
    assert [math.isnan(weight) for weight in weighed] == [True, False, True]
    assert weighed[1] == 0


def test_the_peak_of_a_kernel_is_its_largest_weight() -> None:
    assert Kernel().peak == pytest.approx(0.25)
    assert Kernel(alpha=2).peak == pytest.approx(4 / 27, rel=1e-5)
    assert Kernel("hard_filter").peak == Kernel("uniform").peak == 1
    assert math.isinf(Kernel(alpha=-0.5, estimate="posterior").peak)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_sampler_draws_none_that_the_gate_shuts_and_its_mean_counts_them(power: float) -> None:
    student = table([2] * 6, [4] * 6)
    sampler = PassRateSampler(student, Kernel(), power=power, teacher=Reliability(TEACHER, "gate"))
    assert sampler.mean_weight == pytest.approx(0.25 * 4 / 6)
    assert set(sampler.draw(600).tolist()) == {2, 3, 4, 5}
    drawn = sampler.draw(6)
    assert sampler.loss_weights(drawn) == pytest.approx([1.0] * 6), "w̃ / (N q): 6/4 by 1/(6 · 1/4)"


def test_a_teacher_that_is_judged_meanwhile_counts_from_the_next_update_on() -> None:
    student, teacher = table([2] * 3, [4] * 3), PassRateTable(3)
    sampler = PassRateSampler(student, Kernel(), teacher=Reliability(teacher, "gate"))
    teacher.observe([1], [0], [2], step=1)
    sampler.update([1])
    assert set(sampler.draw(30).tolist()) == {0, 2}
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="teacher is gate, here None"):
        PassRateSampler(student, Kernel()).load_state_dict(state)


def test_the_two_way_table_counts_every_prompt_once() -> None:
    student = table([0, 0, 2, 4, 0, 0], [4, 4, 4, 4, 0, 4])
    counts = two_way(student, TEACHER)
    assert counts.sum() == 6
    assert counts[0].tolist() == [1, 1, 0, 1], "hopeless: r = 0, ¼, not known"
    assert counts[1].tolist() == [0, 1, 0, 0]
    assert counts[2].tolist() == [0, 1, 0, 0]
    assert counts[3].tolist() == [0, 0, 1, 0], "nobody asked the student, and the teacher always solves it"


def test_waste_is_hopeless_prompts_of_weight_0_that_the_teacher_solves() -> None:
    student = table([0, 0, 0, 2, 0, 4], [4, 4, 4, 4, 0, 4])
    weights = Kernel()(student.successes, student.samples)
    share, solved = wasted(weights, student, TEACHER)
    assert share == pytest.approx(3 / 5), "of those that were measured"
    assert solved == pytest.approx(1 / 3), "r = 0, ¼, ½"
    assert wasted(Kernel(estimate="posterior")(student.successes, student.samples), student, TEACHER)[0] == 0
    assert math.isnan(wasted(weights, student, PassRateTable(6))[1])
