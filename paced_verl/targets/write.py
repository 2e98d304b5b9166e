"""Teacher responses ahead of a run: ``paced-verl targets`` with the overrides of the run.

The teacher, loaded with vLLM's offline engine or asked at ``paced.targets.endpoint``, writes one response a problem
under the run's context and settings. The file (``paced.targets.file``) is what the run would have made itself.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.reward_score import default_compute_score

from paced_verl.config import ConfigError, PacedConfig, TargetsConfig
from paced_verl.fingerprint import fingerprint_of, tokenizer_hash
from paced_verl.targets.endpoint import Endpoint
from paced_verl.targets.files import Origin
from paced_verl.targets.judge import Judge
from paced_verl.targets.offline import OfflineEngine
from paced_verl.targets.queue import Waiting, Writer
from paced_verl.targets.store import TargetStore
from paced_verl.teacher.context import TeacherContext


def generate_targets(config: DictConfig, paced: PacedConfig) -> dict[str, float]:
    """Write a teacher response for every training prompt that has none yet, those that were skipped before among them.

    Args:
        config: verl's whole configuration, settled and checked.
        paced: Its ``paced`` block, parsed.

    Returns:
        Counts: ``stored`` responses, of which ``new``; prompts that were ``skipped`` (none was kept in ``attempts``
        tries); of an endpoint also :class:`~paced_verl.targets.endpoint.Endpoint`'s.

    Raises:
        ConfigError: No file to write to, several teachers, or no response that could be kept.
        ConnectionError: The endpoint failed; what it answered before is stored.
    """
    if paced.targets.file is None:
        raise ConfigError("paced.targets.file is not set: where should the teacher responses go?")
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    writer = _writer(config, paced, model)
    dataset = create_rl_dataset(config.data.train_files, config.data, model.tokenizer, model.processor, is_train=True,
                                max_samples=config.data.get("train_max_samples", -1))  # fmt: skip
    store = TargetStore(Origin(fingerprint_of(dataset), tokenizer_hash(model.tokenizer)))
    if Path(paced.targets.file).exists():
        store.load(paced.targets.file)
        store.check(dataset, model.hf_config.get_text_config().vocab_size)
    before = store.responses
    missing = [prompt for prompt in range(len(dataset)) if not store.has_response(prompt)]
    counts: dict[str, float] = {}
    if missing:
        judge = Judge(model.tokenizer, get_custom_reward_fn(config) or default_compute_score, paced.pass_rate.threshold)
        with Waiting(missing, dataset, store, paced.targets, judge) as waiting:
            counts = writer.write(waiting)
            if not store.responses:
                raise ConfigError(_nothing_kept(paced.targets, len(missing)))
    stored = store.responses
    return {"stored": stored, "new": stored - before, "skipped": len(dataset) - stored, **counts}


def _nothing_kept(targets: TargetsConfig, asked: int) -> str:
    return (
        f"The teacher was asked about {asked} prompts, paced.targets.attempts={targets.attempts} times each, and no "
        f"response could be kept (paced.targets.keep={targets.keep}): {targets.file} is not written. Does the reward "
        "function find the answer in what the teacher writes?"
    )


def _writer(config: DictConfig, paced: PacedConfig, model: Any) -> Writer:
    """The endpoint if there is one, else the teacher's model in the offline engine.

    Raises:
        ConfigError: There are several teachers, each with its context, or a context shows what only a run has.
    """
    teacher = paced.teacher
    contexts = {name: TeacherContext(name, teacher.solution_key) for name in teacher.contexts}
    if isinstance(teacher.context, dict) and len(contexts) > 1:
        raise ConfigError(f"paced.teacher.context={teacher.context}: `paced-verl targets` knows one teacher.")
    for name, context in contexts.items():
        if context.needs:
            raise ConfigError(
                f"paced.teacher.context={name} shows the teacher a response of the student, which only a run has. Take "
                "another context, or paced.targets.column."
            )

    def context_of(row: Mapping[str, Any]) -> TeacherContext:
        if isinstance(teacher.context, dict):
            return next(iter(contexts.values()))
        return contexts[teacher.context_of(row.get("data_source"), None)]

    if paced.targets.endpoint is not None:
        return Endpoint(paced.targets, context_of, model.tokenizer, config.actor_rollout_ref.rollout.response_length)
    teachers = [teacher for teacher in config.distillation.teacher_models.values() if teacher.get("model_path")]
    if len(teachers) != 1:
        raise ConfigError(f"`paced-verl targets` knows one teacher, distillation.teacher_models has {len(teachers)}.")
    return OfflineEngine(config, paced, context_of, teachers[0], model)
