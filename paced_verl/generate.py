"""Teacher responses ahead of a run: ``paced-verl targets`` with the overrides of the run.

The teacher is loaded with vLLM's offline engine, writes one response a problem under the run's context and settings,
and the file (``paced.targets.file``) is what the run would have made itself. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.reward_score import default_compute_score
from vllm import LLM, SamplingParams, TokensPrompt

from paced_verl.checks import check
from paced_verl.config import ConfigError, PacedConfig
from paced_verl.passrate import is_correct
from paced_verl.prompts import Prompts
from paced_verl.targets import Target, TargetStore, prompt_hash

CHUNK = 512  # prompts between two writes of the file


def generate_targets(config: DictConfig) -> dict[str, int]:
    """Write a teacher response for every training prompt that has none yet.

    Returns:
        Counts: stored responses, of which new, of which skipped (none was correct in ``attempts`` tries).

    Raises:
        ConfigError: No file to write to, several teachers, or anything that would stop the run too.
    """
    paced = check(config)
    teachers = [teacher for teacher in config.distillation.teacher_models.values() if teacher.get("model_path")]
    if paced.targets.file is None:
        raise ConfigError("paced.targets.file is not set: where should the teacher responses go?")
    if len(teachers) != 1:
        raise ConfigError(f"`paced-verl targets` knows one teacher, distillation.teacher_models has {len(teachers)}.")
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    dataset = create_rl_dataset(config.data.train_files, config.data, model.tokenizer, model.processor, is_train=True,
                                max_samples=config.data.get("train_max_samples", -1))  # fmt: skip
    prompts = Prompts(
        paced.teacher,
        tokenizer=model.tokenizer,
        processor=model.processor,
        data=config.data,
        model_type=model.hf_config.model_type,
        prompt_length=config.actor_rollout_ref.rollout.prompt_length,
    )
    store = TargetStore()
    if Path(paced.targets.file).exists():
        store.load(paced.targets.file)
    missing = [i for i in range(len(dataset)) if store.get(i, dataset[i]["raw_prompt"]) is None]
    if missing:
        _write(config, paced, teachers[0], model.tokenizer, dataset, prompts, store, missing)
    skipped = sum(not store[i].token_ids for i in range(len(dataset)))
    return {"stored": len(store), "new": len(missing), "skipped": skipped}


def _write(
    config: DictConfig,
    paced: PacedConfig,
    teacher: DictConfig,
    tokenizer: Any,
    dataset: Any,
    prompts: Prompts,
    store: TargetStore,
    missing: list[int],
) -> None:
    inference = teacher.inference
    engine = LLM(
        model=teacher.model_path,
        dtype=inference.dtype,
        tensor_parallel_size=inference.tensor_model_parallel_size,
        max_model_len=inference.max_model_len,
        gpu_memory_utilization=inference.gpu_memory_utilization,
        enforce_eager=inference.enforce_eager,
    )
    sampling = SamplingParams(
        temperature=paced.targets.temperature,
        top_p=paced.targets.top_p,
        max_tokens=config.actor_rollout_ref.rollout.response_length,
    )
    reward = get_custom_reward_fn(config) or default_compute_score
    assert paced.targets.file is not None
    for start in tqdm(range(0, len(missing), CHUNK), desc="Teacher responses", unit="chunk"):
        rows = {i: dataset[i] for i in missing[start : start + CHUNK]}
        waiting = dict(rows)
        for _ in range(paced.targets.attempts):
            inputs = [TokensPrompt(prompt_token_ids=prompts.teacher(row)) for row in waiting.values()]
            outputs = engine.generate(inputs, sampling, use_tqdm=False)
            for (i, row), output in zip(list(waiting.items()), outputs, strict=True):
                target = _target(row, list(output.outputs[0].token_ids), tokenizer, reward, paced)
                if paced.targets.keep == "all" or target.correct:
                    store.add(i, target)
                    del waiting[i]
        for i, row in waiting.items():
            store.add(i, Target((), prompt_hash=prompt_hash(row["raw_prompt"]), correct=False))
        store.save(paced.targets.file)


def _target(row: dict[str, Any], token_ids: list[int], tokenizer: Any, reward: Any, paced: PacedConfig) -> Target:
    response = tokenizer.decode(token_ids, skip_special_tokens=True)
    result = reward(
        data_source=row["data_source"],
        solution_str=response,
        ground_truth=row["reward_model"]["ground_truth"],
        extra_info=row["extra_info"],
    )
    score, extra = (result["score"], result) if isinstance(result, dict) else (result, {})
    correct = is_correct(score, extra, paced.pass_rate.threshold)
    return Target(tuple(token_ids), response, correct, prompt_hash(row["raw_prompt"]))
