"""What the overrides of a run say of a measurement: which problems, whose responses, which objective."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass

from paced_verl.config import ConfigError, PacedConfig, StageConfig
from paced_verl.config.schedule import InterpolationConfig
from paced_verl.config.wiring import teacher_paths
from paced_verl.diagnostics.snr import BINS, bins_of
from paced_verl.evaluate.models import weights_folder
from paced_verl.fingerprint import fingerprint_of, tokenizer_hash
from paced_verl.gradients.problem import Objective, Problem
from paced_verl.gradients.worker import Recipe
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.files import Origin
from paced_verl.targets.store import TargetStore, response_in
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.prompts import Prompts

MODEL = "--model"


@dataclass(frozen=True)
class Options:
    """What a measurement needs beside the overrides of a run.

    Attributes:
        stage: Of the schedule, from 1.
        module: What the gradient is of; ``None``: the output layer.
        model: The student, if it is not that of the overrides: a checkpoint, or a folder.
        per_bin: Problems a bin at most.
        responses: How many the student writes a problem; ``None``: as many as in the run.
        dtype: Of both models.
        dimensions: Numbers that are kept of a gradient.
        seed: Of the choice of problems, of sampling, projection and bootstrap.
    """

    stage: int = 1
    module: str | None = None
    model: str | None = None
    per_bin: int = 32
    responses: int | None = None
    dtype: str = "float32"
    dimensions: int = 16_384
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """A measurement, resolved.

    Attributes:
        recipe: How.
        problems: Of what.
        bins: (problems,) which bin of the pass rate each is in.
        rates: (problems,) their pass rates.
        table: The file that these are from.
        student_writes: Whether the student writes the responses.
    """

    recipe: Recipe
    problems: list[Problem]
    bins: npt.NDArray[np.int64]
    rates: npt.NDArray[np.float64]
    table: Path
    student_writes: bool


def resolve(config: DictConfig, paced: PacedConfig, options: Options) -> Inputs:
    """What is to be measured.

    Args:
        config: verl's whole configuration, settled and checked.
        paced: Its ``paced`` block, parsed.
        options: The command's.

    Raises:
        PacedError: There are no pass rates, no responses, no such stage, or several teachers.
        FileNotFoundError: There is no such model.
    """
    stage = _stage(paced, options)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    dataset = create_rl_dataset(config.data.train_files, config.data, model.tokenizer, model.processor, is_train=True,
                                max_samples=config.data.get("train_max_samples", -1))  # fmt: skip
    file = _table(paced, options)
    table = PassRateTable.load(file, len(dataset), fingerprint_of(dataset))
    responses = Responses(config, paced, model.tokenizer, dataset) if stage.responses == "teacher" else None
    chosen = choose(bins_of(table.successes, table.samples), options, responses)
    if not chosen:
        raise ConfigError(_nothing(file, responses))
    prompts = PromptsOf(config, paced, model, dataset)
    return Inputs(
        recipe=_recipe(config, paced, stage, options),
        problems=[prompts.problem(prompt, responses[prompt] if responses else ()) for prompt in chosen],
        bins=bins_of(table.successes[chosen], table.samples[chosen]),
        rates=table.rates(np.array(chosen)).astype(np.float64),
        table=file,
        student_writes=responses is None,
    )


def choose(bins: npt.NDArray[np.int64], options: Options, responses: Responses | None) -> list[int]:
    """Up to ``per_bin`` prompts of each bin, at random, of those that have a response where one is needed."""
    rng, chosen = np.random.default_rng(options.seed), []
    for place in range(BINS):
        order = rng.permutation(np.flatnonzero(bins == place)).tolist()
        usable = order if responses is None else (prompt for prompt in order if responses[prompt])
        chosen += list(itertools.islice(usable, options.per_bin))
    return chosen


class Responses:
    """The teacher's responses that there are: stored ones, and the data's own, in a run's order."""

    def __init__(self, config: DictConfig, paced: PacedConfig, tokenizer: Any, dataset: Any):
        self.column, self.tokenizer, self.dataset = paced.targets.column, tokenizer, dataset
        self.length = config.actor_rollout_ref.rollout.response_length
        self.store = TargetStore(Origin(fingerprint_of(dataset), tokenizer_hash(tokenizer)))
        if paced.targets.file is not None and Path(paced.targets.file).exists():
            self.store.load(paced.targets.file)

    def __getitem__(self, prompt: int) -> tuple[tuple[int, ...], ...]:
        """The one response of a prompt, in the student's tokens; none where there is none."""
        row = self.dataset[prompt]
        target = self.store.get(prompt, row["raw_prompt"])
        ids = target.token_ids if target else ()
        text = response_in(row, self.column) if self.column and not ids else None
        if text is not None:
            ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
        return (ids[: self.length],) if ids else ()


class PromptsOf:
    """Makes problems of the rows of a data set."""

    def __init__(self, config: DictConfig, paced: PacedConfig, model: Any, dataset: Any):
        self.dataset, self.context = dataset, _context(paced)
        self.prompts = Prompts.of(config, model)

    def problem(self, prompt: int, responses: tuple[tuple[int, ...], ...]) -> Problem:
        """A problem with these responses."""
        row = self.dataset[prompt]
        student, teacher = self.prompts.student(row), self.prompts.teacher(row, self.context)
        return Problem(prompt, tuple(student), tuple(teacher), responses)


def _stage(paced: PacedConfig, options: Options) -> StageConfig:
    count = len(paced.schedule)
    if not 1 <= options.stage <= count:
        raise ConfigError(f"--stage {options.stage}: paced.schedule has {count} stage(s); expected 1 to {count}.")
    stage = paced.schedule[options.stage - 1]
    if stage.responses == "teacher" and options.responses is not None:
        raise ConfigError(
            f"--responses {options.responses}: stage {options.stage} trains on the teacher's responses, one a problem. "
            "Leave it out, or choose a --stage on the student's."
        )
    return stage


def _table(paced: PacedConfig, options: Options) -> Path:
    """The pass rates of the student that is measured: its checkpoint's own, else those that the run starts from."""
    own = _checkpoints(options.model)
    found = next((file for file in own if file.exists()), None)
    if found is None and paced.pass_rate.file is None:
        raise ConfigError(
            "There are no pass rates to sort problems by. Name a table (paced.pass_rate.file=…), such as an earlier "
            f"run's paced/pass_rates/after_step_0.parquet, or a checkpoint of a paced run ({MODEL} …/global_step_N)."
        )
    return found or Path(str(paced.pass_rate.file))


def _checkpoints(model: str | None) -> Iterator[Path]:
    """Where a checkpoint of a paced run has its table: beside ``actor``."""
    for folder in (Path(model), Path(model).parent) if model else ():
        yield folder / "paced" / "pass_rates.parquet"


def _nothing(file: Path, responses: Responses | None) -> str:
    if responses is None:
        return f"{file}: nobody has sampled any of these prompts, so there are no pass rates to sort them by."
    return (
        "No prompt with a known pass rate has a teacher's response (paced.targets.file, paced.targets.column). "
        "`paced-verl targets` writes them, with these overrides."
    )


def _context(paced: PacedConfig) -> TeacherContext:
    name, *others = dict.fromkeys(paced.teacher.contexts)
    context = TeacherContext(name, paced.teacher.solution_key)
    if others or context.needs:
        raise ConfigError(
            f"paced.teacher.context={paced.teacher.context}: `paced-verl diagnose snr` knows one context, and none "
            "that shows a rollout. Choose none, solution, answer or a template of these."
        )
    return context


def _recipe(config: DictConfig, paced: PacedConfig, stage: StageConfig, options: Options) -> Recipe:
    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    student = weights_folder(options.model) if options.model else model.path
    return Recipe(
        student=student,
        teacher=_teacher(config, paced, student),
        module=options.module,
        objective=objective_of(config, paced, stage),
        responses=options.responses or rollout.n,
        response_length=rollout.response_length,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        dtype=options.dtype,
        dimensions=options.dimensions,
        seed=options.seed,
        trust_remote_code=bool(model.get("trust_remote_code", False)),
    )


def _teacher(config: DictConfig, paced: PacedConfig, student: str) -> str:
    if paced.teacher.backend == "student":
        return student
    path, *others = teacher_paths(config).values()
    if others:
        raise ConfigError(
            "distillation.teacher_models has several models: `paced-verl diagnose snr` knows one teacher."
        )
    return path


def objective_of(config: DictConfig, paced: PacedConfig, stage: StageConfig) -> Objective:
    """What a stage trains, at its first step.

    Raises:
        ConfigError: Tokens are chosen by a predictor, which a step of one response does not ask.
    """
    if paced.tokens.file is not None:
        raise ConfigError(
            "paced.tokens.select=aligned: `paced-verl diagnose snr` knows tip and registered token weights."
        )
    divergence = stage.divergence
    return Objective(
        divergence=divergence.start if isinstance(divergence, InterpolationConfig) else divergence,
        parameters=dict(stage.parameters),
        topk=paced.teacher.topk,
        says_tail=paced.teacher.backend == "reference",
        token_mean=config.actor_rollout_ref.actor.loss_agg_mode == "seq-mean-token-mean",
        temperature=config.actor_rollout_ref.rollout.temperature,
        clamp=config.distillation.distillation_loss.loss_max_clamp,
        select=paced.tokens.select,
        keep=paced.tokens.keep,
    )
