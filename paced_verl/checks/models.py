"""Models that are folders here: vocabularies and lengths. verl checks a hub's when it loads them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from verl.workers.rollout.utils import get_max_position_embeddings

from paced_verl.checks.data import contexts, describe_error
from paced_verl.checks.rows import Longest
from paced_verl.checks.scan import Rows
from paced_verl.config import PacedConfig
from paced_verl.config.wiring import teacher_paths

STUDENT = "actor_rollout_ref.model.path"


class Limit(NamedTuple):
    """Tokens of a sequence that a server reads at most, one that it writes included, and the key that says so."""

    key: str
    tokens: int


def models(config: DictConfig, paced: PacedConfig, rows: Rows) -> Iterator[str]:
    """Problems of the student's and the teachers' models.

    Args:
        config: verl's whole configuration.
        paced: Its ``paced`` block, parsed.
        rows: What a pass over the data found, for the lengths of the teacher's prompts.
    """
    student = config.actor_rollout_ref.model.path
    teachers = {f"distillation.teacher_models.{name}.model_path": path for name, path in teacher_paths(config).items()}
    paths = {STUDENT: student, **teachers}
    if problems := [*_folders(paths), *_adapter(config, paced, teachers)]:
        yield from problems
        return
    local = {key: path for key, path in paths.items() if Path(path).is_dir()}
    loaded: dict[str, Any] = {}
    for key, path in local.items():
        try:
            loaded[key] = _load(config, path)
        # Whatever a broken file makes these libraries raise.
        except Exception as error:
            yield f"{key}={path} cannot be loaded: {describe_error(error)}. Download or save the model again."
            continue
        tokenizer = loaded[key][0]
        # Where there are no files, transformers makes a tokenizer of the model's type that knows nothing.
        if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
            yield f"{key}={path} has no tokenizer's files, or empty ones. Download or save the model again."
            del loaded[key]
    if loaded.keys() < local.keys():
        return
    if STUDENT in loaded:
        yield from _vocabularies(paths, loaded)
    sizes = {key: size for key, (_, size) in loaded.items()}
    for key in teachers or {STUDENT: student}:
        if key in sizes:
            yield from _teacher_model(paced, paths[key], sizes[key])
    yield from _lengths(config, paced, rows, sizes, loaded[STUDENT][0] if STUDENT in loaded else None)


def _folders(paths: dict[str, Any]) -> Iterator[str]:
    for key, path in paths.items():
        if not isinstance(path, str) or not path:
            yield f"{key}={path}: expected a model's folder, or its name on the hub."
        elif path.endswith("/"):
            yield f"{key}={path}: verl takes no path that ends in a slash. Write {path.rstrip('/')}."
        elif not Path(path).exists():
            if path.startswith("~"):
                yield f"{key}={path} does not exist: verl does not expand ~. Write $HOME, or the whole path."
            elif "://" not in path and (path.startswith((".", "/")) or path.count("/") > 1):
                yield f"{key}={path} does not exist (a relative path is looked for in {os.getcwd()})."
        elif not Path(path).is_dir():
            yield f"{key}={path} is a file: expected a model's folder, with config.json, weights and tokenizer."
        elif (Path(path) / "adapter_config.json").exists():
            yield (
                f"{key}={path} is a LoRA adapter, which would be left out or not be found: merge it into its base "
                "model (peft: merge_and_unload, save_pretrained) and name the merged folder."
            )
        elif not (Path(path) / "config.json").exists():
            yield f"{key}={path} has no config.json: it is not the folder of a model (of a checkpoint, merge it first)."


def _adapter(config: DictConfig, paced: PacedConfig, teachers: dict[str, str]) -> Iterator[str]:
    """The reference teacher is loaded without adapters: it would not be the student that it is said to be."""
    adapter = config.actor_rollout_ref.model.get("lora_adapter_path")
    if adapter and paced.teacher.backend == "reference" and config.actor_rollout_ref.model.path in teachers.values():
        yield (
            f"actor_rollout_ref.model.lora_adapter_path={adapter}: the teacher is {STUDENT} without this adapter, not "
            "the student as it starts. Merge the adapter into the model, or name another teacher."
        )


def _load(config: DictConfig, path: str) -> tuple[Any, Any]:
    """Its tokenizer and its configuration."""
    from transformers import AutoConfig, AutoTokenizer

    model = config.actor_rollout_ref.model
    trust = bool(model.get("trust_remote_code", False))
    tokenizer = (model.get("tokenizer_path") if path == model.path else None) or path
    return (
        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust),
        AutoConfig.from_pretrained(path, trust_remote_code=trust),
    )


def _vocabularies(paths: dict[str, str], loaded: dict[str, Any]) -> Iterator[str]:
    vocabulary = loaded[STUDENT][0].get_vocab()
    for key, (tokenizer, _) in loaded.items():
        if tokenizer.get_vocab() != vocabulary:
            yield (
                f"{key}={paths[key]}: its vocabulary differs from the student's ({paths[STUDENT]}). A divergence "
                "compares distributions over the same tokens: use a teacher of the student's family."
            )


def _teacher_model(paced: PacedConfig, path: str, sizes: Any) -> Iterator[str]:
    text, topk = sizes.get_text_config(), paced.teacher.topk
    if isinstance(topk, int) and topk > text.vocab_size:
        yield f"paced.teacher.topk={topk} exceeds the vocabulary of {text.vocab_size} tokens of {path}."
    scaling = [key for key in ("final_logit_softcapping", "logits_scaling", "logit_scale") if getattr(text, key, None)]
    if topk == "full" and scaling:
        yield (
            f"paced.teacher.topk=full computes logits as hidden states × output layer, but {path} also applies "
            f"{', '.join(scaling)}. Give a number of tokens."
        )


def _lengths(
    config: DictConfig, paced: PacedConfig, rows: Rows, sizes: dict[str, Any], tokenizer: Any
) -> Iterator[str]:
    """Whether prompts and responses fit whoever reads them: the student, and the teacher under each context."""
    prompt, response = config.data.max_prompt_length, config.actor_rollout_ref.rollout.response_length
    key, limit = "actor_rollout_ref.rollout.max_model_len", _student_limit(config, sizes)
    # A student that scores its own longest response writes one token more.
    needed = prompt + response + (paced.alignment.every_steps is not None)
    if limit is not None and needed > limit:
        yield (
            f"{key}={limit} is too short: the student reads data.max_prompt_length={prompt} tokens and writes up to "
            f"data.max_response_length={response}. Set it to {needed} or more, as far as its model goes, or "
            "make the data shorter."
        )
    limits = dict(_limits(config, paced, sizes))
    for setting, context, _ in contexts(config, paced) if limits else ():
        longest, what = prompt, f"data.max_prompt_length={prompt}"
        if context.privileged:
            if tokenizer is None:
                continue
            longest = max(_token_lengths(rows.longest.get(setting, Longest()), tokenizer), default=0)
            what = f"the longest teacher prompt under {setting}, {longest} tokens"
            if context.needs:
                longest += response
                what += f" and a rollout of up to {response}"
        for key, limit in limits.items():
            if longest + response + 1 > limit:
                yield (
                    f"{key}={limit} is too short: the teacher reads {what}, plus a response of up to {response} "
                    f"tokens, plus one. Set it to {longest + response + 1} or more."
                )


def server_limits(config: DictConfig) -> dict[str | None, Limit]:
    """What every server of a run reads at most, by the teachers' names in the configuration; ``None``: the student's.

    Without those whose models are not here and whose length no key says.
    """
    student = config.actor_rollout_ref.model.path
    paths = {STUDENT: student, **{f"distillation.teacher_models.{n}.model_path": p for n, p in _served(config)}}
    return _server_limits(config, {key: _load(config, path)[1] for key, path in paths.items() if Path(path).is_dir()})


def _served(config: DictConfig) -> Iterable[tuple[str, str]]:
    return teacher_paths(config).items() if config.paced.teacher.backend == "server" else ()


def _server_limits(config: DictConfig, sizes: dict[str, Any]) -> dict[str | None, Limit]:
    found: dict[str | None, Limit] = {}
    for name, _ in _served(config):
        inference = config.distillation.teacher_models[name].inference
        model = sizes.get(f"distillation.teacher_models.{name}.model_path")
        limit = inference.max_model_len if inference.max_model_len is not None else _positions(model)
        if limit is not None:
            found[name] = Limit(f"distillation.teacher_models.{name}.inference.max_model_len", int(limit))
    student = _student_limit(config, sizes)
    if student is not None:
        found[None] = Limit("actor_rollout_ref.rollout.max_model_len", student)
    return found


def _limits(config: DictConfig, paced: PacedConfig, sizes: dict[str, Any]) -> Iterator[Limit]:
    """Of each who teaches."""
    actor_rollout_ref, backend = config.actor_rollout_ref, paced.teacher.backend
    servers = _server_limits(config, sizes)
    yield from (limit for name, limit in servers.items() if name is not None)
    if (backend == "student" or paced.route is not None) and None in servers:
        yield servers[None]
    if backend == "reference" and actor_rollout_ref.ref.log_prob_use_dynamic_bsz:
        tokens = actor_rollout_ref.ref.log_prob_max_token_len_per_gpu
        yield Limit("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu", int(tokens) * _ranks(actor_rollout_ref))


def _student_limit(config: DictConfig, sizes: dict[str, Any]) -> int | None:
    """As verl's vLLM server takes it: the setting, else what the model's configuration says, or what overrides that."""
    actor_rollout_ref = config.actor_rollout_ref
    if actor_rollout_ref.rollout.max_model_len is not None:
        return int(actor_rollout_ref.rollout.max_model_len)
    override = actor_rollout_ref.model.get("override_config") or {}
    override = override.get("model_config") or override
    return override.get("max_position_embeddings") or _positions(sizes.get(STUDENT))


def _positions(sizes: Any) -> int | None:
    try:
        return None if sizes is None else get_max_position_embeddings(sizes)
    except ValueError:  # a model without such a limit
        return None


def _ranks(actor_rollout_ref: DictConfig) -> int:
    """Ranks that share a sequence."""
    return int(actor_rollout_ref.ref.get("ulysses_sequence_parallel_size", 1))


def _token_lengths(prompts: Longest, tokenizer: Any) -> Sequence[int]:
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
