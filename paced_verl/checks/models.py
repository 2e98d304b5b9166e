"""Vocabularies and lengths, of models that are folders here: verl checks a hub's when it loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig

from paced_verl.checks.data import contexts, train_files
from paced_verl.checks.teacher import teacher_paths
from paced_verl.config import PacedConfig
from paced_verl.context import TeacherContext


def models(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Problems of the student's and the teachers' models."""
    student = config.actor_rollout_ref.model.path
    paths = {f"distillation.teacher_models.{name}.model_path": path for name, path in teacher_paths(config).items()}
    for key, path in {"actor_rollout_ref.model.path": student, **paths}.items():
        if os.path.isabs(path) and not Path(path).exists():
            yield f"{key}={path} does not exist."
            return
    if not Path(student).is_dir():
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    vocabulary = tokenizer.get_vocab()
    for key, path in paths.items():
        if Path(path).is_dir() and AutoTokenizer.from_pretrained(path).get_vocab() != vocabulary:
            yield (
                f"{key}={path}: its vocabulary differs from the student's ({student}). A divergence compares "
                "distributions over the same tokens: use a teacher of the student's family."
            )
    for path in {*paths.values()} or {student}:
        if Path(path).is_dir():
            yield from _teacher_model(paced, path)
    yield from _lengths(config, paced, tokenizer)


def _teacher_model(paced: PacedConfig, path: str) -> Iterator[str]:
    sizes = _sizes(path)
    topk = paced.teacher.topk
    if isinstance(topk, int) and topk > sizes["vocab_size"]:
        yield f"paced.teacher.topk={topk} exceeds the vocabulary of {sizes['vocab_size']} tokens of {path}."
    scaling = [key for key in ("final_logit_softcapping", "logits_scaling", "logit_scale") if sizes.get(key)]
    if topk == "full" and scaling:
        yield (
            f"paced.teacher.topk=full computes logits as hidden states × output layer, but {path} also applies "
            f"{', '.join(scaling)}. Give a number of tokens."
        )


def _sizes(path: str) -> dict[str, Any]:
    sizes: dict[str, Any] = json.loads((Path(path) / "config.json").read_text())
    return sizes


def _lengths(config: DictConfig, paced: PacedConfig, tokenizer: Any) -> Iterator[str]:
    """Whether the longest prompt under each context, and a response, fit whoever reads them."""
    limits = dict(_limits(config, paced))
    if not limits:
        return
    response = config.actor_rollout_ref.rollout.response_length
    for setting, context in contexts(paced):
        prompt, what = config.data.max_prompt_length, f"data.max_prompt_length={config.data.max_prompt_length}"
        if context.privileged:
            prompt = max(_context_lengths(config, context, tokenizer), default=0)
            what = f"the longest teacher prompt under {setting}, {prompt} tokens"
            if context.needs_rollout:
                prompt += response
                what += f" and a rollout of up to {response}"
        for key, limit in limits.items():
            if prompt + response + 1 > limit:
                yield (
                    f"{key}={limit} is too short: the teacher reads {what}, plus a response of up to {response} "
                    f"tokens, plus one. Set it to {prompt + response + 1} or more."
                )


def _limits(config: DictConfig, paced: PacedConfig) -> Iterator[tuple[str, int]]:
    """Tokens that each teacher can read, by the key that limits them."""
    actor_rollout_ref, backend = config.actor_rollout_ref, paced.teacher.backend
    if backend == "server":
        for name in teacher_paths(config):
            teacher = config.distillation.teacher_models[name]
            limit = teacher.inference.max_model_len or _positions(teacher.model_path)
            if limit is not None:
                yield f"distillation.teacher_models.{name}.inference.max_model_len", int(limit)
    if backend == "student" or paced.route is not None:
        limit = actor_rollout_ref.rollout.max_model_len or _positions(actor_rollout_ref.model.path)
        if limit is not None:
            yield "actor_rollout_ref.rollout.max_model_len", int(limit)
    if backend == "reference" and actor_rollout_ref.ref.log_prob_use_dynamic_bsz:
        tokens = actor_rollout_ref.ref.log_prob_max_token_len_per_gpu
        yield "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu", int(tokens) * _ranks(actor_rollout_ref)


def _positions(path: str) -> int | None:
    return _sizes(path).get("max_position_embeddings") if Path(path).is_dir() else None


def _ranks(actor_rollout_ref: DictConfig) -> int:
    """Ranks that share a sequence."""
    return int(actor_rollout_ref.ref.get("ulysses_sequence_parallel_size", 1))


def _context_lengths(config: DictConfig, context: TeacherContext, tokenizer: Any, most: int = 1000) -> Sequence[int]:
    """Token lengths of the teacher prompts of the rows with the most text."""
    rows: list[dict[str, Any]] = []
    for file in map(os.path.expanduser, train_files(config)):
        if file.endswith(".parquet"):
            rows += pq.read_table(file).to_pylist()
    key = config.data.get("prompt_key", "prompt")
    prompts = [context.messages(row | {"raw_prompt": row[key]}, rollout="") for row in rows]
    prompts.sort(key=lambda messages: -sum(len(str(message["content"])) for message in messages))
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts[:most]]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
