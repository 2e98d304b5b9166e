"""Whether a response solves its problem, outside of a run. No Ray, no verl."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paced_verl.pacing.pass_rates import is_correct


@dataclass(frozen=True)
class Judge:
    """Judges responses as a run does: verl's reward function, and what counts as correct.

    Args:
        tokenizer: The student's.
        reward: verl's reward function, a call with its keyword arguments.
        threshold: ``paced.pass_rate.threshold``.
    """

    tokenizer: Any
    reward: Callable[..., Any]
    threshold: float

    def __call__(self, row: Mapping[str, Any], token_ids: Sequence[int]) -> tuple[str, bool]:
        """The text of a response, and whether it is correct. May run in any thread that runs no event loop.

        Args:
            row: Of verl's data set.
            token_ids: The response.
        """
        response = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        result = self.reward(
            data_source=row["data_source"],
            solution_str=response,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        score, extra = (result["score"], result) if isinstance(result, Mapping) else (result, {})
        return response, is_correct(score, extra, self.threshold)


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
