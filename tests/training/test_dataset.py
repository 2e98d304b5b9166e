"""What is read off verl's data set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from paced_verl.config import CapabilityConfig
from paced_verl.errors import PacedError
from paced_verl.training.dataset import capabilities_of


def of(**block: Any) -> Any:
    rows = {
        "prompt": [[{"role": "user", "content": str(i)}] for i in range(12)],
        "skill": ["maths", "code"] * 6,
        "extra_info": [{"level": i // 4} for i in range(12)],
    }
    kept = datasets.Dataset.from_dict(rows).filter(lambda row: row["prompt"][0]["content"] != "3")  # too long, say
    settings = CapabilityConfig.model_validate({"column": "skill", "probe": {"prompts": 2}} | block)
    return capabilities_of(SimpleNamespace(dataframe=kept, prompt_key="prompt"), settings, seed=0)


def test_capabilities_and_levels_are_those_of_the_rows_that_verl_has_kept() -> None:
    capabilities, levels = of(curriculum={"column": "extra_info.level"})
    assert capabilities.names == ("code", "maths")
    np.testing.assert_array_equal(capabilities.sizes, [3, 4])
    assert levels.names == ("0", "1", "2")
    np.testing.assert_array_equal(levels.of, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    assert of()[1] is None


@pytest.mark.parametrize(
    ("block", "key"), [({"column": "kind"}, "column"), ({"curriculum": {"column": "level"}}, "curriculum.column")]
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(block: dict[str, Any], key: str) -> None:
    with pytest.raises(PacedError, match=rf"paced.capability.{key}=.*they have prompt, skill, extra_info"):
        of(**block)
