"""What a plan recommends: by the settings, and by pass rates that are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from paced_verl.config import PacedConfig
from paced_verl.launch.advice import recommend
from paced_verl.pacing.pass_rates import PassRateTable

STAGE = {"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}


def told(hopeless: float | None = None, **block: Any) -> str:
    table = None
    if hopeless is not None:
        table = PassRateTable(100)
        k = np.where(np.arange(90) < 90 * hopeless, 0, 4)  # ten are not known
        table.observe(np.arange(90), k, np.full(90, 8), 0)
    return " ".join(recommend(PacedConfig.parse({"schedule": [STAGE]} | block), table))


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
