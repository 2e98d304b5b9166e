"""Gradients over Ray workers, each kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from omegaconf import DictConfig, OmegaConf
from ray.util import ActorPool
from tqdm import tqdm

from paced_verl.diagnostics.snr import BINS
from paced_verl.errors import PacedError
from paced_verl.gradients.inputs import Inputs
from paced_verl.gradients.parts import Parts
from paced_verl.gradients.problem import Problem
from paced_verl.gradients.worker import Gradient, Recipe, Worker, sizes_of


@dataclass(frozen=True)
class Measurement:
    """Gradients to compute.

    Attributes:
        inputs: Of what.
        sizes: Numbers by parameter.
        parts: Where they go.
    """

    inputs: Inputs
    sizes: dict[str, int]
    parts: Parts

    def __str__(self) -> str:
        """What will be done, before anything is."""
        inputs, recipe = self.inputs, self.inputs.recipe
        counts = np.bincount(inputs.bins, minlength=BINS)
        numbers, kept, missing = sum(self.sizes.values()), self.dimensions, len(self.missing)
        count = len(inputs.problems)
        source = f"{recipe.responses} responses each of the student" if inputs.student_writes else "stored responses"
        whole = "whole" if kept == numbers else f"as {kept:,} numbers"
        return "\n".join(
            [
                f"{count:,} problems by their pass rates in {inputs.table} (a bin: {', '.join(map(str, counts))})",
                f"one gradient each of {recipe.objective.divergence} on {source}: {count:,} gradients, "
                f"{count - missing:,} of them there already",
                f"of {', '.join(self.sizes)}: {numbers:,} numbers, {numbers * _itemsize(recipe) / 1e6:,.1f} MB a "
                f"worker beside both models; kept {whole}, {count * kept * 4 / 1e6:,.0f} MB in {self.parts.folder}",
                f"student {recipe.student}, teacher {recipe.teacher}, {recipe.dtype}",
            ]
        )

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        recipe = self.inputs.recipe
        whose = "the student's" if self.inputs.student_writes else "stored"
        of = recipe.module or "the output layer"
        return f"{recipe.objective.divergence} on {whose} responses, gradient of {of}, {recipe.student}"

    @property
    def dimensions(self) -> int:
        """Numbers that are kept of a gradient."""
        return min(self.inputs.recipe.dimensions, sum(self.sizes.values()))

    @property
    def missing(self) -> list[Problem]:
        """The problems whose gradients are not there yet."""
        missing = set(self.parts.missing())
        return [problem for problem in self.inputs.problems if problem.prompt in missing]


def plan(inputs: Inputs, out: Path) -> Measurement:
    """What is to be done, with results in the folder ``out``; no Ray yet.

    Raises:
        PacedError: The student has no such module.
    """
    keys = {problem.prompt: inputs.recipe.key(problem) for problem in inputs.problems}
    return Measurement(inputs, sizes_of(inputs.recipe), Parts(out / "parts", keys))


def run(measurement: Measurement, config: DictConfig, workers: int | None) -> None:
    """Compute the gradients that are missing, in no order; each is written as soon as it is there.

    Args:
        measurement: A planned one.
        config: verl's whole configuration.
        workers: How many; ``None``: one a GPU of the cluster, or one without GPUs.

    Raises:
        PacedError: There are fewer GPUs than workers, or fewer cores; or a gradient is not finite.
    """
    if problems := measurement.missing:
        computed = compute(measurement.inputs.recipe, problems, config, workers)
        for gradient in tqdm(computed, total=len(problems), desc="Gradients", unit="problem"):
            measurement.parts.write(gradient)


def compute(recipe: Recipe, problems: list[Problem], config: DictConfig, workers: int | None) -> Iterator[Gradient]:
    """Gradients over Ray workers, as they come; see :func:`run`. Ray starts as for a run, or joins its cluster."""
    if not ray.is_initialized():
        settings: Any = OmegaConf.to_container(config.ray_kwargs.get("ray_init") or OmegaConf.create())
        ray.init(**settings)
    # On a CPU machine Ray's GPUs are slots that it is told to pretend.
    gpus = 0 if config.trainer.get("device") == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    what, most = ("GPU", gpus) if gpus else ("core", int(ray.cluster_resources().get("CPU", 0)))
    if workers and min(workers, len(problems)) > most:  # Ray would wait for more for ever
        raise PacedError(f"--workers {workers}: each takes a {what}, and Ray's cluster has {most}. Ask for so many.")
    remote: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpus else 0)
    pool: Any = ActorPool([remote.remote(recipe) for _ in range(min(workers or gpus or 1, len(problems)))])
    yield from pool.map_unordered(lambda worker, problem: worker.gradient.remote(problem), problems)


def _itemsize(recipe: Recipe) -> int:
    return 4 if recipe.dtype == "float32" else 2
