"""The files of the data: that they are there, can be read, and have the fields that a run reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig, ListConfig

from paced_verl.checks.rows import Need, Which, blocks, count, is_list, is_text, kind_of, lacking, schema_of
from paced_verl.config import PacedConfig, SourceContexts
from paced_verl.config.wiring import teacher_paths
from paced_verl.teacher.context import TeacherContext

SUFFIXES = (".parquet", ".json", ".jsonl")
SOURCE = "data_source"
"""The column by which verl's reward function, and contexts by source, tell data sets apart."""
UNREADABLE = (ValueError, OSError, pa.ArrowException)
"""What a file that is not what its name says raises."""


def is_own(config: DictConfig) -> bool:
    """Whether a class of the user's (``data.custom_cls``) reads the data: nothing is known of its files."""
    return bool((config.data.get("custom_cls") or {}).get("path"))


def local_files(config: DictConfig, key: str) -> list[str]:
    """``data.train_files`` or ``data.val_files`` as a list, without those that are elsewhere (``hdfs://``, ``hf://``)."""
    files = config.data.get(key)
    names = [files] if isinstance(files, str) else list(files or ())
    return [name for name in names if "://" not in name]


def number_of_prompts(config: DictConfig) -> int | None:
    """Rows of the training files, before verl filters overlong prompts; ``None`` where that is not known here."""
    files = config.data.train_files
    names = [files] if isinstance(files, str) else list(files)
    if is_own(config) or not all(name.endswith(SUFFIXES) and Path(name).is_file() for name in names):
        return None
    rows = sum(map(count, names))
    limit = config.data.get("train_max_samples", -1)
    return min(rows, limit) if limit > 0 else rows


def training_data(config: DictConfig, paced: PacedConfig | None) -> Iterator[str]:
    """Problems of the files themselves, training and validation; without a block of ours, what verl reads of them."""
    if is_own(config):
        yield from _own_class(config)
        return
    wanted_of = {"train_files": needs(config, paced) if paced else scored(config), "val_files": scored(config)}
    for key, wanted in wanted_of.items():
        wrong = list(_names(config, key))
        for file in () if wrong else local_files(config, key):
            wrong += _file(config, key, file, wanted)
        wrong = wrong or [*_together(local_files(config, key), f"data.{key}")]
        yield from wrong
        if paced and key == "train_files" and not wrong:
            yield from _media(config, paced)


def _own_class(config: DictConfig) -> Iterator[str]:
    """Whether verl can import the class that reads the data."""
    from verl.utils.dataset.rl_dataset import get_dataset_class

    custom = config.data.custom_cls
    try:
        get_dataset_class(config.data)
    except (Exception, SystemExit) as error:  # the file is a person's own code
        yield f"data.custom_cls.path={custom.path}, name={custom.name}: cannot be imported ({describe_error(error)})."


def _names(config: DictConfig, key: str) -> Iterator[str]:
    files = config.data.get(key)
    names = list(files) if isinstance(files, (list, ListConfig)) else [files]
    if not names or not all(isinstance(name, str) and name for name in names):
        yield f"data.{key}={files}: expected the path of a file, or a list of such paths."


def _file(config: DictConfig, key: str, file: str, wanted: Sequence[Need]) -> Iterator[str]:
    setting, path = f"data.{key}", Path(file)
    if not path.exists():
        home = " verl does not expand ~: write $HOME, or the whole path." if file.startswith("~") else ""
        yield f"{setting}: {file} does not exist.{home}"
    elif path.is_dir():
        yield f"{setting}: {file} is a folder. Name the files in it: {setting}=[{file}/a.parquet,{file}/b.parquet]."
    elif not file.endswith(SUFFIXES):
        yield f"{setting}: {file} has another suffix than {', '.join(SUFFIXES)}, which are all that verl reads."
    else:
        try:
            rows = count(file)
            schema = schema_of(file) if rows else pa.schema([])
        except UNREADABLE as error:
            what = "a parquet file" if path.suffix == ".parquet" else "a file of JSON objects, one a line"
            yield f"{setting}: {file} is not {what} ({_first_line(error)})."
            return
        if not rows:
            yield f"{setting}: {file} has no rows."
            return
        yield from _columns(config, file, schema, wanted)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _columns(config: DictConfig, file: str, schema: pa.Schema, wanted: Sequence[Need]) -> Iterator[str]:
    key = config.data.get("prompt_key", "prompt")
    prompt = kind_of(schema, key)
    columns = f"Its columns: {', '.join(schema.names)}."
    if prompt is None:
        yield f"{file} has no field {key} (data.prompt_key). {columns}"
    elif not _is_chat(prompt):
        yield (
            f"{file}: its column {key} (data.prompt_key) is {prompt}, but verl wants chat messages, "
            '[{"role": "user", "content": "…"}]. examples/prepare_jsonl.py makes them of plain text.'
        )
    extra = kind_of(schema, "extra_info")
    if not (extra is None or pa.types.is_null(extra) or pa.types.is_struct(extra)):
        yield f"{file}: its column extra_info is {extra}, but verl wants fields by name, or no such column."
    for need in wanted:
        kind = kind_of(schema, need.path)
        if kind is None:
            yield f"{file} has no field {need.path}. {need.why} {columns}"
        elif need.text and not (is_text(kind) or pa.types.is_null(kind)):
            yield f"{file}: its field {need.path} is {kind}, not text. {need.why}"


def _is_chat(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True  # the rows will say so
    message = kind.value_type if is_list(kind) else None
    return message is not None and pa.types.is_struct(message) and {"role", "content"} <= {f.name for f in message}


def _together(files: Sequence[str], setting: str) -> Iterator[str]:
    """verl joins its files into one table."""
    if len(files) < 2:
        return
    import datasets
    from datasets.table import InMemoryTable

    schemas = [schema_of(file) for file in files]
    rows = [pa.table([pa.nulls(1, column.type) for column in schema], schema=schema) for schema in schemas]
    try:
        datasets.concatenate_datasets([datasets.Dataset(InMemoryTable(row)) for row in rows])
    except ValueError as error:
        yield f"{setting}: {', '.join(files)} cannot be joined into one table ({_first_line(error)})."


def needs(config: DictConfig, paced: PacedConfig) -> list[Need]:
    """The fields of the training data that a run reads, beside the prompt."""
    found = scored(config)
    if isinstance(paced.teacher.context, SourceContexts) and all(need.path != SOURCE for need in found):
        found.append(Need(SOURCE, "paced.teacher.context.data_source says by it what the teacher sees."))
    for setting, context, which in [*contexts(config, paced), *measured(paced)]:
        if "solution" in context.variables:
            found.append(Need(f"extra_info.{paced.teacher.solution_key}", _SOLUTION.format(setting), which, text=True))
        if "answer" in context.variables:
            found.append(Need("reward_model.ground_truth", f"{setting} shows it to the teacher.", which))
    if teacher_keys(config):
        found.append(Need(config.distillation.teacher_key, "distillation.teacher_key says which teacher a row has."))
    if paced.targets.column is not None:
        why = "paced.targets.column takes the teacher's responses from it."
        written = any(stage.responses == "teacher" for stage in paced.schedule) and paced.targets.file is None
        # What is missing, a teacher server writes.
        if every := paced.teacher.backend == "reference" and written:
            why += " paced.teacher.backend=reference writes none: leave these rows out, or take a teacher that writes."
        found.append(Need(paced.targets.column, why, text=True, all_rows=every))
    return found


def teacher_keys(config: DictConfig) -> list[str]:
    """The keys by which rows name their teacher; none where there is but one."""
    names = list(teacher_paths(config))
    return [str(config.distillation.teacher_models[name].key) for name in names] if len(names) > 1 else []


_SOLUTION = (
    "{} shows it to the teacher. Name the field of extra_info that holds expert solutions "
    "(paced.teacher.solution_key), write one (examples/prepare_dapo_math.py --solutions, examples/prepare_jsonl.py "
    "--solution), leave rows without one out, or take paced.teacher.context=answer, which shows the final answer and "
    "works with verl's own data."
)


def scored(config: DictConfig) -> list[Need]:
    """The fields that verl's reward managers read of every row."""
    if config.reward.reward_model.enable or config.reward.reward_manager.source == "importlib":
        return []
    why = (
        "Without it no response can be scored, and there is no pass rate: verl hands it to the reward function (where "
        "yours does not read it, write anything)."
    )
    return [Need(SOURCE, why), Need("reward_model.ground_truth", why)]


def contexts(config: DictConfig, paced: PacedConfig) -> list[tuple[str, TeacherContext, Which | None]]:
    """What teachers see: the setting that says so, the context, and of which rows; ``None``: of any."""
    named = [(f"paced.teacher.context={name}", name, which) for name, which in _shown(config, paced).items()]
    if paced.route is not None:
        named.append((f"paced.route.context={paced.route.context}", paced.route.context, None))
    return [(setting, TeacherContext(name, paced.teacher.solution_key), which) for setting, name, which in named]


def measured(paced: PacedConfig) -> list[tuple[str, TeacherContext, None]]:
    """The same of what a run measures besides, of any row (``paced.alignment.every_steps``)."""
    names = paced.alignment.contexts if paced.alignment.every_steps is not None else ()
    return [
        (f"paced.alignment.contexts={name}", TeacherContext(name, paced.teacher.solution_key), None) for name in names
    ]


def _shown(config: DictConfig, paced: PacedConfig) -> dict[str, Which | None]:
    """Each context of the teacher once, with the rows that it is for."""
    of = paced.teacher.context
    if isinstance(of, str) or (isinstance(of, dict) and not teacher_keys(config)):
        return dict.fromkeys(paced.teacher.contexts)
    by, column = (of, config.distillation.teacher_key) if isinstance(of, dict) else (of.data_source, SOURCE)
    found: dict[str, Which | None] = {
        name: Which(column, tuple(value for value, own in by.items() if own == name)) for name in by.values()
    }
    if isinstance(of, SourceContexts) and of.others is not None:
        named_otherwise = tuple(value for value, own in by.items() if own != of.others)
        found[of.others] = Which(column, named_otherwise, others=True)
    return found


def _media(config: DictConfig, paced: PacedConfig) -> Iterator[str]:
    """Only a server that scores under the student's own prompt is shown what the student sees."""
    blind = [setting for setting, context, _ in contexts(config, paced) if context.privileged]
    blind += [
        f"paced.schedule[{i}].responses=teacher" for i, s in enumerate(paced.schedule) if s.responses == "teacher"
    ]
    blind += ["paced.alignment.every_steps"] * (paced.alignment.every_steps is not None)
    blind += ["paced.teacher.backend=reference"] * (paced.teacher.backend == "reference")
    for file in local_files(config, "train_files") if blind else ():
        for setting, usual in (("image_key", "images"), ("video_key", "videos"), ("audio_key", "audios")):
            key = config.data.get(setting, usual)
            if _has_media(file, key):
                yield (
                    f"{file} has {usual} (column {key}, data.{setting}), which the teacher would not be shown under "
                    f"{', '.join(blind)}. Train on responses of the student with a teacher server and "
                    "paced.teacher.context=none, or take the column out of the data."
                )


def _has_media(file: str, key: str) -> bool:
    if kind_of(schema_of(file), key) is None:
        return False
    return any(not all(lacking(block.column(key)).to_pylist()) for block in blocks(file, [key], rows=16))


def describe_error(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    first: Any = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
