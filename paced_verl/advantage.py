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

import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from pydantic import StrictBool
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from paced_verl.config import ConfigError, KernelConfig
from paced_verl.config.base import Factor, Number, PositiveFactor
from paced_verl.config.verdicts import Replacement, Verdict, replace
from paced_verl.config.wiring import seed_of_subset
from paced_verl.divergence.functions import LOG_ZERO
from paced_verl.names import TRAINER_MODES
from paced_verl.pacing.kernel import FloatArray, Kernel, weights_by_successes
from paced_verl.pacing.pass_rates import is_correct

NAME = "paced"


class AdvantageConfig(KernelConfig):
    """The block ``algorithm.paced``. No table of pass rates is there to fit to: ``prior: null`` is Beta(1, 1)."""

    threshold: Number = 0.5
    """A response is correct from this score on: the sum of its token rewards (verl hands an estimator no ``acc``)."""
    mean_weight: PositiveFactor | None = None
    """What w is divided by; null: see :func:`paced_verl.pacing.kernel.weights_by_successes`."""
    task_coef: Factor = 0.0
    """Factor of GRPO's advantage (verl's, under ``algorithm.norm_adv_by_std_in_grpo``). Not multiplied by w̃."""
    strict: StrictBool = False
    """Whether a setting of verl's that would be replaced or ignored is an error."""

    @classmethod
    def of(cls, algorithm: DictConfig) -> AdvantageConfig:
        """Read ``paced`` in verl's ``algorithm`` configuration; defaults where it is missing.

        Raises:
            ConfigError: With one line a problem.
        """
        return cls.read(algorithm.get("paced") if "paced" in algorithm else {}, "algorithm.paced")


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


@register_adv_est(NAME)
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


def install(ray_trainer: ModuleType) -> None:
    """Have ``verl.trainer.ppo.ray_trainer.compute_advantage`` hand the two log-probabilities to this estimator.

    verl passes registered estimators rewards, mask and groups only. Every other estimator goes through verl's function
    as it is. To be called before ``verl.trainer.ppo.v1`` imports that function by name.
    """
    stock: Any = ray_trainer.compute_advantage

    @functools.wraps(stock)
    def compute_advantage(data: Any, adv_estimator: Any, *args: Any, **kwargs: Any) -> Any:
        if adv_estimator != NAME:
            return stock(data, adv_estimator, *args, **kwargs)
        data.batch["advantages"], data.batch["returns"] = estimate_paced_advantage(
            token_level_rewards=data.batch["token_level_rewards"],
            response_mask=data.batch["response_mask"],
            index=data.non_tensor_batch["uid"],
            config=kwargs["config"],
            old_log_probs=data.batch["old_log_probs"],
            ref_log_prob=data.batch.get("ref_log_prob", None),
        )
        return data

    ray_trainer.compute_advantage = compute_advantage  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- before a run

_NO_TEACHER = (
    "actor_rollout_ref.actor.use_kl_loss=False: algorithm.adv_estimator=paced reads the teacher's log-probabilities, "
    "and verl only starts a reference worker for a KL. Set it to True, with actor_rollout_ref.actor.kl_loss_coef=0.0."
)


def _reward_problems(algorithm: DictConfig) -> Iterator[str]:
    if algorithm.get("use_kl_in_reward", False):
        yield (
            "algorithm.use_kl_in_reward=True takes a KL penalty off the rewards that pass rates are counted from, and "
            "algorithm.adv_estimator=paced has that KL already. Set it to False."
        )


def settle(config: DictConfig) -> list[Verdict]:
    """Bring a composed configuration to what this estimator needs, in place; see :mod:`paced_verl.config.verdicts`."""
    return list(replace(config, _replacements(config)))


def _replacements(config: DictConfig) -> Iterator[Replacement]:
    yield "trainer.use_v1", True, "verl's deprecated trainer is not tested with it"
    mode = config.trainer.v1.trainer_mode
    if mode in TRAINER_MODES:
        yield "trainer.v1.trainer_mode", mode.removeprefix("paced_"), "the advantage is for verl's own trainers"
    if config.algorithm.adv_estimator != NAME:
        yield "algorithm.adv_estimator", NAME, "the block algorithm.paced is this estimator's"
    if not config.actor_rollout_ref.actor.use_kl_loss:
        why = "verl only starts a reference worker, the teacher here, for a KL; the KL itself is in the advantage"
        yield "actor_rollout_ref.actor.use_kl_loss", True, why
        yield "actor_rollout_ref.actor.kl_loss_coef", 0.0, why
        yield from _micro_batch_of_the_teacher(config)
    why = "pass rates are counted from the rewards, and the KL is in the advantage"
    yield "algorithm.use_kl_in_reward", False, why
    yield "distillation.enabled", False, "verl's distillation loss would take the place of the policy loss"
    if config.critic.enable is not None:
        yield "critic.enable", False, "no critic reads this advantage"
    yield "trainer.critic_warmup", 0, "there is no critic, and the student would not train meanwhile"
    yield from seed_of_subset(config)


def _micro_batch_of_the_teacher(config: DictConfig) -> Iterator[Replacement]:
    """verl asks for one where it starts a reference worker; a command without a KL has none."""
    ref, rollout = config.actor_rollout_ref.ref, config.actor_rollout_ref.rollout
    if not (ref.log_prob_use_dynamic_bsz or ref.log_prob_micro_batch_size or ref.log_prob_micro_batch_size_per_gpu):
        key, size = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", rollout.log_prob_micro_batch_size_per_gpu
        yield key, size, "the teacher takes the rollouts' micro-batches"


def check(config: DictConfig, files: bool = True) -> tuple[AdvantageConfig, list[Verdict]]:
    """Settle a composed verl configuration that runs this estimator in place, and check it.

    Args:
        config: verl's whole configuration, with a block ``algorithm.paced``.
        files: Look at data, models and the reward function, too.

    Returns:
        The parsed block, and which settings do not run as written.

    Raises:
        ConfigError: One problem a line.
    """
    from paced_verl.checks import refuse, refuse_strictly, verl, version_problems
    from paced_verl.checks.files import file_problems
    from paced_verl.reference_path import problems_of_teacher

    settings = AdvantageConfig.of(config.algorithm)
    refuse([*version_problems(), *_strays(config)])
    refuse(verl.blocks(config))
    refuse(verl.engines(config))
    refuse([*verl.numbers(config), *verl.names(config)])
    verdicts = settle(config)
    refuse_strictly(settings.strict, verdicts)
    mode = config.trainer.v1.trainer_mode
    refuse([*_group(config, settings), *verl.shapes(config, mode), *verl.lengths(config)])
    refuse(verl.verls_own(config))
    refuse(problems_of_teacher(config, settings.task_coef, files))
    refuse(file_problems(config, None) if files else ())
    return settings, verdicts


def _strays(config: DictConfig) -> Iterator[str]:
    if "paced" in config:
        keys = ", ".join(f"paced.{key}" for key in config.paced)
        yield f"{keys}: +paced=advantage does not read them; its settings are under algorithm.paced."


def _group(config: DictConfig, settings: AdvantageConfig) -> Iterator[str]:
    n = config.actor_rollout_ref.rollout.n
    if n < 2:
        yield (
            f"actor_rollout_ref.rollout.n={n}: a response is weighed by the others of its group, and there are none; "
            "expected 3 or more, try 8."
        )
    elif not weights_by_successes(settings.to_kernel(), n - 1).any():
        yield (
            f"algorithm.paced: with actor_rollout_ref.rollout.n={n} every response would weigh 0, however many of the "
            f"other {n - 1} are correct. Use a larger n, estimate: posterior, or another kernel."
        )


def describe(config: DictConfig, settings: AdvantageConfig, verdicts: Sequence[Verdict] = ()) -> str:
    """What will run, in words."""
    n, actor = config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.actor
    weights = ", ".join(f"{w:.2f}" for w in weights_by_successes(settings.to_kernel(), n - 1, settings.mean_weight))
    teacher = config.actor_rollout_ref.ref.get("teacher_path")
    lines = [
        "paced-verl will run:",
        f"  advantage: w̃ · (log T − log S) on the student's own tokens, {n} responses a prompt",
        f"  teacher: {teacher or 'the student as it starts'}, as verl's reference worker",
        f"  weight: {settings.kernel}, {settings.estimate}; w̃ where 0 … {n - 1} of the others are correct: {weights}",
    ]
    if settings.task_coef:
        lines.append(f"  task rewards: + {settings.task_coef:g} × GRPO's advantage")
    if actor.kl_loss_coef:
        lines.append(f"  KL loss: verl's own, × {actor.kl_loss_coef:g} (actor.kl_loss_coef), on top of the advantage")
    lines += (f"  {verdict}" for verdict in verdicts)
    return "\n".join(lines)
