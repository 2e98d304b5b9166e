"""Reward for the task data of this package, in the shape verl's reward loop calls.

Point verl at it with::

    reward.custom_reward_function.path=pkg://paced_verl.tasks.reward
    reward.custom_reward_function.name=compute_score

Rewards are 0 or 1: PACED counts passes, and verl's validation reads ``acc``. The module imports only the standard
library, because every reward worker loads it; reasoning-gym or math-verify are loaded only for answers that differ
from the ground truth and that only they can judge. Where one of them is missing such an answer is an error, not a 0:
an equivalent answer that counts as wrong would lower every pass rate without a word.
"""

import json
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

PREFIX = "reasoning_gym/"


class MissingJudgeError(ImportError):
    """What judges an answer cannot be imported."""

    def __init__(self, judge: str, error: ImportError) -> None:
        super().__init__(
            f"{judge} judges answers that differ from the ground truth, and cannot be imported ({error}): "
            "pip install 'paced-verl[tasks]'"
        )


def extract_answer(response: str) -> str:
    """The final answer of a response: what follows the last ``Answer:``, else the last ``=``, up to the line's end."""
    for mark in ("Answer:", "="):
        if mark in response:
            return response.rsplit(mark, 1)[1].strip().split("\n", 1)[0].strip()
    return response.strip()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **_kwargs: Any,
) -> dict[str, float]:
    """Score one response: 1 if its final answer is right, else 0, as ``score`` and as ``acc``.

    ``reasoning_gym/<family>`` is judged as the family's own ``score_answer`` does, without its partial credit; any
    other ``data_source`` is taken as mathematics and judged by math-verify.

    Raises:
        MissingJudgeError: Only reasoning-gym or math-verify can judge this answer, and it cannot be imported.
    """
    truth = str(ground_truth)
    answer = extract_answer(solution_str)
    if data_source.startswith(PREFIX):
        right = _reasoning_gym_right(data_source.removeprefix(PREFIX), answer, truth, extra_info or {})
    else:
        right = answer == truth or _same_number(answer, truth) or _maths_right(solution_str, answer, truth)
    return {"score": float(right), "acc": float(right)}


def _reasoning_gym_right(family: str, answer: str, truth: str, extra_info: dict[str, Any]) -> bool:
    if family == "spell_backward":
        return answer.lower() == truth.lower()
    if family == "chain_sum":
        return _same_number(answer, truth)
    if answer == truth:
        return True
    entry = {"answer": truth, "metadata": json.loads(extra_info.get("metadata") or "{}")}
    scorer = _family(family)
    try:
        return scorer.score_answer(answer, entry) >= 1.0
    except Exception:  # the scorers parse what a model wrote; whatever trips them is not an answer
        return False


def _same_number(answer: str, truth: str) -> bool:
    try:
        return Decimal(answer.replace(",", "")) == Decimal(truth.replace(",", ""))
    except InvalidOperation:
        return False


@cache
def _family(name: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingJudgeError("reasoning-gym", error) from error
    dataset, config = DATASETS[name]
    return dataset(config=config())


def _maths_right(response: str, answer: str, truth: str) -> bool:
    try:
        import math_verify  # noqa: F401
        from verl.utils.reward_score import math_verify as verl_math_verify
    except ImportError as error:
        raise MissingJudgeError("math-verify", error) from error
    # verl's wrapper judges in a subprocess: math-verify's own time limit does not work in a reward worker's threads.
    return any(verl_math_verify.compute_score(text, truth) >= 1.0 for text in dict.fromkeys((answer, response)))
