"""Whether a response is correct, outside of a run: by reward functions as people write them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from paced_verl.targets.judge import Judge

ROW = {"data_source": "sums", "reward_model": {"ground_truth": "4"}, "extra_info": {}}
TOKENIZER = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))


def plain(solution_str: str, ground_truth: str, **_: Any) -> float:
    return float(solution_str.endswith(ground_truth))


async def waiting(solution_str: str, ground_truth: str, **_: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"score": 0.0, "acc": solution_str.endswith(ground_truth)}


@pytest.mark.parametrize("reward", [plain, waiting])
@pytest.mark.parametrize(("tokens", "correct"), [([1, 4], True), ([1, 5], False)])
def test_a_reward_function_is_called_as_verl_calls_it_and_waited_for(
    reward: Any, tokens: list[int], correct: bool
) -> None:
    judge = Judge(TOKENIZER, reward, 0.5)
    assert judge(ROW, tokens) == (" ".join(map(str, tokens)), correct)

    async def in_a_thread() -> Any:
        return await asyncio.to_thread(judge, ROW, tokens)

    assert asyncio.run(in_a_thread())[1] is correct
