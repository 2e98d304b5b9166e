"""What a run of the advantage sets, refuses and says, before Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from paced_verl.advantage.config import AdvantageConfig
from paced_verl.advantage.install import KEY
from paced_verl.checks import refuse, refuse_strictly, verl, version_problems
from paced_verl.checks.files import file_problems
from paced_verl.config.verdicts import Replacement, Verdict, replace
from paced_verl.config.wiring import seed_of_subset
from paced_verl.names import ESTIMATOR, TRAINER_MODES
from paced_verl.pacing.kernel import weights_by_successes


def settle(config: DictConfig) -> list[Verdict]:
    """Bring a composed configuration to what this estimator needs, in place; see :mod:`paced_verl.config.verdicts`."""
    return list(replace(config, _replacements(config)))


def _replacements(config: DictConfig) -> Iterator[Replacement]:
    yield "trainer.use_v1", True, "verl's deprecated trainer is not tested with it"
    mode = config.trainer.v1.trainer_mode
    if mode in TRAINER_MODES:
        yield "trainer.v1.trainer_mode", mode.removeprefix("paced_"), "the advantage is for verl's own trainers"
    if config.algorithm.adv_estimator != ESTIMATOR:
        yield "algorithm.adv_estimator", ESTIMATOR, "the block algorithm.paced is this estimator's"
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


def problems_of_teacher(config: DictConfig, task_coef: float, files: bool) -> Iterator[str]:
    """What is wrong with the teacher that the reference worker will load, one line a problem."""
    model, teacher = config.actor_rollout_ref.model, config.actor_rollout_ref.ref.get("teacher_path")
    lora = model.get("lora", {}).get("rank", 0) > 0 or model.get("lora_rank", 0) > 0 or model.get("lora_adapter_path")
    if teacher and lora:
        yield (
            f"{KEY}={teacher}: with LoRA verl has no reference worker, the reference is the actor without its adapter. "
            "Set it to null, or train all weights."
        )
    same = not teacher or _folder(teacher) == _folder(model.path)
    if same and not lora and not task_coef:
        yield (
            f"{KEY}={teacher}: the teacher is the student as it starts, so every advantage is 0 for ever. Name a "
            "teacher, or set algorithm.paced.task_coef > 0."
        )
    if not same and files:
        yield from _vocabularies(model.path, teacher)


def _vocabularies(student: str, teacher: str) -> Iterator[str]:
    """Of models that are folders here; a hub's are not looked at."""
    for key, path in (("actor_rollout_ref.model.path", student), (KEY, teacher)):
        if os.path.isabs(os.path.expanduser(path)) and not _folder(path).exists():
            yield f"{key}={path} does not exist."
            return
    if not (_folder(student).is_dir() and _folder(teacher).is_dir()):
        return
    from transformers import AutoTokenizer

    own, other = (AutoTokenizer.from_pretrained(_folder(path)).get_vocab() for path in (student, teacher))
    if own != other:
        yield (
            f"{KEY}={teacher}: its vocabulary differs from the student's ({student}). The teacher scores the student's "
            "token ids: use a teacher of the student's family."
        )


def _folder(path: str) -> Path:
    return Path(path).expanduser().resolve()


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
