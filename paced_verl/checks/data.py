"""Files: tables, and the columns of the training data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig

from paced_verl.checks.teacher import teacher_paths
from paced_verl.config import PacedConfig
from paced_verl.context import TeacherContext
from paced_verl.passrate import PassRateTable


def stored_files(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    path = paced.pass_rate.file
    if path is None:
        return
    if not Path(path).exists():
        yield f"paced.pass_rate.file={path}: there is no such file."
        return
    # Which rows verl keeps is only known once it has tokenized them all; the trainer looks again.
    filtered = config.data.get("filter_overlong_prompts", True)
    try:
        PassRateTable.load(path, expected_size=None if filtered else number_of_prompts(config))
    except ValueError as error:
        yield f"paced.pass_rate.file: {error}"


def train_files(config: DictConfig) -> list[str]:
    """``data.train_files`` as a list."""
    files = config.data.train_files
    return [files] if isinstance(files, str) else list(files)


def number_of_prompts(config: DictConfig) -> int | None:
    """Rows of the training files, before verl filters overlong prompts; ``None`` where they are not local parquet."""
    files = [os.path.expanduser(file) for file in train_files(config)]
    if not all(file.endswith(".parquet") and Path(file).exists() for file in files):
        return None
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    limit = config.data.get("train_max_samples", -1)
    return min(rows, limit) if limit > 0 else rows


def training_data(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    for file in map(os.path.expanduser, train_files(config)):
        if not Path(file).exists():
            yield f"data.train_files: {file} does not exist."
        elif file.endswith(".parquet"):
            yield from _columns(config, paced, file)


def _columns(config: DictConfig, paced: PacedConfig, file: str) -> Iterator[str]:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        yield f"data.train_files: {file} is not a parquet file ({error})."
        return
    needed = {config.data.get("prompt_key", "prompt"): "data.prompt_key"}
    if not config.reward.reward_model.enable:
        why = "without it no response can be scored, and there is no pass rate: the reward function reads it"
        needed |= {"data_source": why, "reward_model": why}
    for key, context in contexts(paced):
        if "solution" in context.variables:
            needed[f"extra_info.{paced.teacher.solution_key}"] = f"{key} shows it to the teacher"
        if "answer" in context.variables:
            needed["reward_model.ground_truth"] = f"{key} shows it to the teacher"
    if len(teacher_paths(config)) > 1:
        needed[config.distillation.teacher_key] = "distillation.teacher_key: it says which teacher a row has"
    if paced.targets.column:
        needed[paced.targets.column] = "paced.targets.column"
    for path, why in needed.items():
        if not _has_field(schema, path):
            yield f"{file} has no field {path} ({why}). Its columns: {', '.join(schema.names)}."


def contexts(paced: PacedConfig) -> list[tuple[str, TeacherContext]]:
    """What teachers see, by the setting that says so."""
    contexts = [(f"paced.teacher.context={name}", name) for name in paced.teacher.contexts]
    if paced.route is not None:
        contexts.append((f"paced.route.context={paced.route.context}", paced.route.context))
    return [(key, TeacherContext(name, paced.teacher.solution_key)) for key, name in contexts]


def _has_field(schema: pa.Schema, path: str) -> bool:
    first, *rest = path.split(".")
    if first not in schema.names:
        return False
    kind = schema.field(first).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        kind = kind.field(name).type
    return True
