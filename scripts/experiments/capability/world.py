"""What all policies of a seed share: the student before the run, its pass rates, what the teacher says, what judges."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paced_verl.capability.table import Capabilities
from paced_verl.pacing.pass_rates import PassRateTable
from scripts.experiments.capability.problems import NAMES, make
from scripts.experiments.evidence.model import Model, pretrain, sample
from scripts.experiments.evidence.problems import Problems, join, right

STUDENT, TEACHER = 48, 96  # width
TRAINING, HELD_OUT = 512, 1024  # problems of each capability; probes are set apart of the first ones
PASS_RATE_SAMPLES = 4
LEARNED = {"copy": 0.5, "reverse": 0.2, "sort": 0.2, "shift": 0.06, "peak": 0.04}
"""What the student has learned before the run: shares of its problems. Nothing is ``deep``."""
STUDENT_STEPS, TEACHER_STEPS = 260, 2500


@dataclass(frozen=True)
class World:
    """Of a seed. N prompts, those of a capability one after the other.

    Attributes:
        student: Before the run.
        train: The prompts of all capabilities, those included that will be set apart.
        successes: Of ``PASS_RATE_SAMPLES`` responses of the student to each, int64 (N,).
        taught: A response of the teacher to each, int64 (N, RESPONSE).
        said: The teacher's log-probabilities there, float32 (N, RESPONSE, VOCAB).
        held_out: What judges, by capability: no prompt of it is in ``train``.
    """

    student: Model
    train: Problems
    successes: Tensor
    taught: Tensor
    said: Tensor
    held_out: dict[str, Problems]

    @cached_property
    def source(self) -> list[str]:
        """The capability of each prompt."""
        return [name for name in NAMES for _ in range(len(self.train) // len(NAMES))]

    def capabilities(self, probes: int, seed: int) -> Capabilities:
        """The product's own split into prompts and probes."""
        return Capabilities.read(self.source, "capability").set_apart(probes, keys(self.train), seed)

    def table(self) -> PassRateTable:
        """Pass rates before the run, as the product has them."""
        table = PassRateTable(len(self.train))
        samples = np.full(len(self.train), PASS_RATE_SAMPLES)
        table.observe(np.arange(len(self.train)), self.successes.numpy(), samples, 0)
        return table


def build(seed: int, folder: Path) -> World:
    """The world of a seed; made once."""
    teacher = the_teacher(folder)
    file = folder / f"world-{seed}.pt"
    if not file.exists():
        _keep(_made(seed, teacher), file)
    kept = torch.load(file, weights_only=True)
    student = Model(STUDENT)
    student.load_state_dict(kept["student"])
    problems = {name: Problems(**kept[name]) for name in ("train", *NAMES)}
    train = problems.pop("train")
    return World(student, train, kept["successes"], kept["taught"], _said(teacher, train, kept["taught"]), problems)


def the_teacher(folder: Path) -> Model:
    """The one of all seeds, trained on all capabilities alike."""
    file, teacher = folder / "teacher.pt", Model(TEACHER)
    if not file.exists():
        generator = torch.Generator().manual_seed(1_000_003)
        torch.manual_seed(1_000_003)
        teacher = Model(TEACHER)
        problems = join([make(name, 30_000, generator) for name in NAMES])
        anneal(teacher, problems, generator, TEACHER_STEPS)
        _keep({"teacher": teacher.state_dict()}, file)
    teacher.load_state_dict(torch.load(file, weights_only=True)["teacher"])
    return teacher


def anneal(model: Model, problems: Problems, generator: torch.Generator, steps: int) -> None:
    """Learn in so many steps, the last quarter of them at a sixth of the rate."""
    for share, rate in ((0.75, 3e-3), (0.25, 5e-4)):
        pretrain(model, problems, generator, never, round(share * steps), rate)


def never(loss: float) -> bool:
    """Not enough learned: whoever learns by a number of steps."""
    return False


def _made(seed: int, teacher: Model) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2_000_003 * (seed + 1))
    torch.manual_seed(seed)
    student = Model(STUDENT)
    before = join([make(name, round(20_000 * share), generator) for name, share in LEARNED.items()])
    anneal(student, before, generator, STUDENT_STEPS)
    parts = {name: apart(lambda n, name=name: make(name, n, generator)) for name in NAMES}  # type: ignore[misc]
    train = join([part[:TRAINING] for part in parts.values()])
    successes = [pass_counts(name, student, part[:TRAINING], generator) for name, part in parts.items()]
    return {
        "student": student.state_dict(),
        "train": vars(train),
        "successes": torch.cat(successes),
        "taught": sample(teacher, train.prompts, generator),
        **{name: vars(part[TRAINING:]) for name, part in parts.items()},
    }


def apart(draw: Callable[[int], Problems]) -> Problems:
    """Problems enough for training and for judging, each once."""
    found = draw(2 * (TRAINING + HELD_OUT))
    first = list({key: row for row, key in reversed(list(enumerate(keys(found))))}.values())[::-1]
    if len(first) < TRAINING + HELD_OUT:
        raise ValueError(f"{len(first)} different problems, but {TRAINING + HELD_OUT} are needed")
    return found[torch.tensor(first[: TRAINING + HELD_OUT])]


def keys(problems: Problems) -> list[str]:
    """What tells prompts apart."""
    return ["-".join(map(str, row)) for row in problems.prompts.tolist()]


def pass_counts(name: str, student: Model, problems: Problems, generator: torch.Generator) -> Tensor:
    """Correct ones of ``PASS_RATE_SAMPLES`` responses to each, int64 (N,)."""
    repeated = problems[torch.arange(len(problems)).repeat_interleave(PASS_RATE_SAMPLES)]
    correct = right(name, sample(student, repeated.prompts, generator), repeated.solutions)
    return correct.view(-1, PASS_RATE_SAMPLES).sum(1)


@torch.no_grad()
def _said(teacher: Model, train: Problems, taught: Tensor) -> Tensor:
    parts = zip(train.prompts.split(512), taught.split(512), strict=True)
    return torch.cat([teacher.response_logits(*part).log_softmax(-1) for part in parts])


def _keep(values: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    torch.save(values, unfinished)
    unfinished.rename(file)
