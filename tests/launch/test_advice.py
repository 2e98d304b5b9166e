"""What a plan recommends: by the settings, and by pass rates and teacher responses that are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from paced_verl.config import PacedConfig
from paced_verl.launch.advice import Known, recommend
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.files import Outcomes

STAGE = {"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}


def table(hopeless: float) -> PassRateTable:
    """Of a hundred prompts, the first ninety known, the first of these hopeless."""
    found = PassRateTable(100)
    found.observe(np.arange(90), np.where(np.arange(90) < 90 * hopeless, 0, 4), np.full(90, 8), 0)
    return found


def judged(prompts: range, right: int, tries: int = 1) -> Outcomes:
    which = np.arange(prompts.start, prompts.stop)
    return Outcomes(which, (which < prompts.start + right).astype(np.int64), np.full(len(which), tries))


def told(hopeless: float | None = None, known: dict[str, Any] | None = None, **block: Any) -> str:
    rates = None if hopeless is None else table(hopeless)
    return " ".join(recommend(PacedConfig.parse({"schedule": [STAGE]} | block), Known(rates, **(known or {}))))


def test_more_samples_than_are_of_use_are_named_with_their_price() -> None:
    assert "paced.pass_rate.samples=4 costs 25% of what 16 do" in told(pass_rate={"samples": 16})
    for block in (
        {"pass_rate": {"samples": 4}},
        {"pass_rate": {"refresh": "never"}},
        {"weight": {"estimate": "posterior"}},
        {"weight": {"kernel": "uniform"}},
    ):
        assert "samples" not in told(**block)


def test_hopeless_prompts_that_would_train_nothing_are_named() -> None:
    assert "50% of the prompts are hopeless" in told(0.5)
    assert "hopeless" not in told(0.1)
    assert "hopeless" not in told(None)
    assert "hopeless" not in told(0.5, weight={"estimate": "posterior"})
    assert "hopeless" not in told(0.5, weight={"teacher": "gate"}, pass_rate={"teacher_samples": 4})
    assert "hopeless" not in told(0.5, weight={"kernel": "uniform"}, pass_rate={"refresh": "never"})


def test_where_the_teacher_is_wrong_at_them_its_mistakes_are_to_be_left_out() -> None:
    text = told(0.5, {"judged": judged(range(100), right=10)})  # of the 45 hopeless ones, the first 10
    assert "right at 22% of the 45 of them" in text
    assert "paced.targets.keep=correct" in text
    assert "+paced=uniform" not in text


def test_where_it_is_right_at_them_a_long_run_is_to_be_uniform() -> None:
    text = told(0.5, {"judged": judged(range(100), right=100)})
    assert "right at 100% of the 45 of them" in text
    assert "+paced=uniform" in text
    assert "keep=correct" not in text


def test_a_share_counts_tries_and_needs_enough_hopeless_prompts() -> None:
    assert "right at 25% of the 45" in told(0.5, {"judged": judged(range(100), right=100, tries=4)})
    for few in (judged(range(40, 100), right=60), judged(range(0, 19), right=0)):
        text = told(0.5, {"judged": few})
        assert "of them where" not in text
        assert "`paced-verl targets`" in text
    text = told(0.5, {"judged": judged(range(100), right=30)})  # two thirds: neither wrong nor right
    assert "right at 67% of the 45" in text
    assert "`paced-verl targets`" not in text
    assert "hopeless" not in told(None, {"judged": judged(range(100), right=0)})


def test_a_run_that_sees_less_than_it_measures_is_told_so() -> None:
    below = {"prompts": 4096, "draws": 1536}
    assert "draws 1,536 prompts and measures all 4,096" in told(known=below)
    assert "measures all" not in told(known=below, pass_rate={"refresh": "draw"})
    assert "measures all" not in told(known=below, pass_rate={"refresh": "never"})
    assert "measures all" not in told(known={"prompts": 4096, "draws": 4096})
    assert "measures all" not in told()
