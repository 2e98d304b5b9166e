"""PACED as an advantage: the policy-gradient form of reverse KL, in verl's own trainers (``adv_estimator=paced``).

The other n − 1 rollouts of its prompt give a response's pass rate p̂ = k/(n−1), verl's reference worker is the teacher
T, and token t of the response y gets

    A_t = w̃(p̂) · (log T(y_t | x, y_<t) − log S_old(y_t | x, y_<t))  +  task_coef · GRPO's advantage

**What it estimates.** With S_old = S (the first update of a step) and all weights 1, the policy gradient of a response,
Σ_t A_t ∇log S(y_t | y_<t), has the expectation

    −Σ_t E_{y_<t ~ S} [ ∇ KL(S(· | y_<t) ‖ T(· | y_<t)) ],          ∇ acting inside the brackets only:

the token-level reverse KLs at the sampled prefixes, the distribution of the prefixes held fixed. This is what the loss
``divergence: reverse_kl, responses: student`` differentiates at top-k = V, with one sampled token a position in place
of the sum over the vocabulary: the same mean, more variance, no teacher servers. It is not the gradient of the
sequence-level KL(S(y) ‖ T(y)), which also moves the prefixes: A_t would be Σ_{s≥t} (log T − log S)(y_s) for that.

**What the weight does to it.** A response does not count in its own p̂. Over groups it is weighted on average by
v = E[w̃(K/(n−1))] with K ~ Binomial(n−1, p), whether it is correct or wrong: what the gradient of a prompt points to is
that of the responses unweighted. Only its size is v, not w̃(p). For w = p(1−p) that is the factor 1 − 1/(n−1), the same
for all prompts. Other kernels are smoothed over about p ± √(p(1−p)/(n−1)). An empirical ``beta`` needs n ≥ 3: one other
response has a rate of 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from paced_verl.advantage.config import AdvantageConfig
from paced_verl.config import ConfigError
from paced_verl.divergence.functions import LOG_ZERO
from paced_verl.names import ESTIMATOR
from paced_verl.pacing.kernel import FloatArray, Kernel, weights_by_successes
from paced_verl.pacing.pass_rates import is_correct

_NO_TEACHER = (
    "actor_rollout_ref.actor.use_kl_loss=False: algorithm.adv_estimator=paced reads the teacher's log-probabilities, "
    "and verl only starts a reference worker for a KL. Set it to True, with actor_rollout_ref.actor.kl_loss_coef=0.0."
)


def group_weights(
    scores: Sequence[float],
    index: npt.ArrayLike,
    kernel: Kernel,
    threshold: float = 0.5,
    mean_weight: float | None = None,
) -> FloatArray:
    """w̃ of each response, by the others of its group.

    Args:
        scores: One a response; it is correct from ``threshold`` on.
        index: Its prompt's group, anything that sorts; same length. Groups may differ in size.
        kernel, mean_weight: See :func:`paced_verl.pacing.kernel.weights_by_successes`.

    Returns:
        float64, one a response; 1 for a response that is alone in its group.
    """
    _, group = np.unique(np.asarray(index), return_inverse=True)
    correct = np.array([is_correct(score, {}, threshold) for score in scores], np.int64)
    others = (np.bincount(group)[group] - 1).tolist()
    successes = np.bincount(group, correct).astype(np.int64)[group] - correct
    weights = {n: weights_by_successes(kernel, n, mean_weight) for n in set(others)}
    return np.array([weights[n][k] for n, k in zip(others, successes, strict=True)])


def paced_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: npt.ArrayLike,
    old_log_probs: torch.Tensor,
    ref_log_prob: torch.Tensor,
    settings: AdvantageConfig,
    norm_adv_by_std_in_grpo: bool = True,
) -> torch.Tensor:
    """A_t, as at the top of this file. Both models' log-probabilities are at ``rollout.temperature``, as verl has them.

    A response whose tokens are all masked still counts in its group, with its score. A teacher's log 0 counts as
    ``paced_verl.divergence.functions.LOG_ZERO``.

    Args:
        token_level_rewards: (B, L); a row's sum is its score.
        response_mask: (B, L), 1 on the tokens that train.
        index: (B,), the group of each row. One row a rollout: agent loops with several outputs a session are counted
            as so many rollouts.
        old_log_probs: (B, L), the student's, of the sampled tokens.
        ref_log_prob: (B, L), the teacher's.
        settings: Kernel, threshold, mean weight, task coefficient.
        norm_adv_by_std_in_grpo: verl's key, for the task advantage.

    Returns:
        (B, L), dtype of the log-probabilities, 0 on masked tokens.
    """
    weights = group_weights(
        token_level_rewards.sum(-1).tolist(), index, settings.to_kernel(), settings.threshold, settings.mean_weight
    )
    gap = ref_log_prob.masked_fill(ref_log_prob == -torch.inf, LOG_ZERO) - old_log_probs
    advantages = torch.where(response_mask.bool(), torch.as_tensor(weights).to(gap)[:, None] * gap, 0.0)
    if settings.task_coef:
        task, _ = compute_grpo_outcome_advantage(
            token_level_rewards, response_mask, np.asarray(index), norm_adv_by_std_in_grpo=norm_adv_by_std_in_grpo
        )
        advantages = advantages + settings.task_coef * task.to(gap)
    return advantages


@register_adv_est(ESTIMATOR)
def estimate_paced_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: npt.ArrayLike,
    config: DictConfig,
    old_log_probs: torch.Tensor,
    ref_log_prob: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`paced_advantage` as verl calls estimators: advantages and returns, the same here (no critic reads them).

    Args:
        config: verl's ``algorithm``.
        ref_log_prob: ``None`` where the trainer has no reference worker.

    Raises:
        ConfigError: ``algorithm.paced`` is wrong, there is no teacher, or the rewards hold a KL penalty.
    """
    for problem in _reward_problems(config):
        raise ConfigError(problem)
    if ref_log_prob is None:
        raise ConfigError(_NO_TEACHER)
    advantages = paced_advantage(
        token_level_rewards,
        response_mask,
        index,
        old_log_probs,
        ref_log_prob,
        AdvantageConfig.of(config),
        config.get("norm_adv_by_std_in_grpo", True),
    )
    return advantages, advantages


def _reward_problems(algorithm: DictConfig) -> Iterator[str]:
    if algorithm.get("use_kl_in_reward", False):
        yield (
            "algorithm.use_kl_in_reward=True takes a KL penalty off the rewards that pass rates are counted from, and "
            "algorithm.adv_estimator=paced has that KL already. Set it to False."
        )
