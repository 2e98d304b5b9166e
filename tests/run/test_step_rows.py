"""Which of a step's rows are one rollout, and what a prompt weighs whatever its number of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from paced_verl import fields
from paced_verl.run.step_rows import StepRows


def step_rows(keys: list[str], prompts: list[int], **changed: Any) -> StepRows:
    """Rows of these keys and prompts: stage 0, weight 1, correct, nothing asked of the teacher, but for ``changed``."""
    size = len(keys)
    asked = {name: np.zeros(size, np.float32) for name in fields.TEACHER_NAMES} | changed.pop("asked", {})
    columns: dict[str, Any] = {
        "stages": np.zeros(size, np.int64),
        "correct": np.ones(size, bool),
        "weight": np.ones(size, np.float32),
        "task": np.ones(size, np.float32),
        "responses": [np.array([prompt, 9]) for prompt in prompts],
        "messages": [[{"role": "user", "content": f"problem {prompt}"}] for prompt in prompts],
    }
    columns |= {name: np.asarray(value) for name, value in changed.items()}
    return StepRows(keys=keys, prompts=np.array(prompts), asked=asked, **columns)


def test_a_prompt_weighs_the_same_with_fewer_responses_whatever_its_outputs() -> None:
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "a_3_0", "b_0_0"]  # four sessions, one of two outputs; and one
    rows = step_rows(keys, [0] * 5 + [1])
    assert rows.responses_per_prompt == 4
    assert rows.weight_factor().tolist() == [1, 1, 1, 1, 1, 4]
    assert rows.weight_factor().dtype == np.float32


def test_a_teachers_column_is_summed_once_a_session() -> None:
    rows = step_rows(["a_0_0", "a_0_1", "a_1_0"], [2, 2, 2], asked={"tokens": np.array([10, 10, 7])})
    assert rows.total("tokens") == 17
    assert rows.total("seconds") == 0
