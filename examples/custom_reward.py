r"""A reward function of your own: only what stands in the last \boxed{…} of a response counts, judged by math-verify.

    python -m verl.trainer.main_ppo … +paced=two_stage \
        reward.custom_reward_function.path=/shared/my/custom_reward.py \
        reward.custom_reward_function.name=compute_score

verl loads the file in its reward workers and calls the function once a response, by keyword. `acc` is what PACED counts
as correct (from `paced.pass_rate.threshold` on) and what validation reports; `score` is the reward, which only
`distillation_loss.use_task_rewards` trains on. More keys become metrics of the validation.

What comes out for a ground truth of 1/2: \boxed{\frac{2}{4}} and \boxed{0.5} are right; \boxed{2} and "the answer is
1/2" are wrong.
"""

from typing import Any

import math_verify  # noqa: F401 (where it is missing, verl's wrapper would score every answer 0)
from verl.utils.reward_score import math_verify as judge
from verl.utils.reward_score.math_reward import last_boxed_only_string


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """1 for a right answer, else 0, as ``score`` and as ``acc``."""
    boxed = last_boxed_only_string(solution_str)
    # verl's wrapper runs math-verify in another process: its time limit does not work in a reward worker's threads.
    right = boxed is not None and judge.compute_score(boxed, str(ground_truth)) >= 1.0
    return {"score": float(right), "acc": float(right)}
