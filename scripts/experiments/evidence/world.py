"""What all arms of a regime and a seed share: models before the run, prompts by class, held-out problems."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.experiments.evidence.model import Model, pretrain, sample
from scripts.experiments.evidence.problems import (
    RESPONSE,
    SYMBOLS,
    Problems,
    draw_lengths,
    join,
    make,
    right,
    with_holes,
)
from scripts.experiments.evidence.regimes import ALL, FRONTIER, HOPELESS, MASTERED, SEEN, Regime

TRAINING, HELD_OUT, CANDIDATES, SAMPLES = 20_000, 2048, 4096, 16
KNOWN = 0.6
"""Mean pass rate on the lengths it has seen at which the student stops learning: single ones spread over 0 to 1."""
STUDENT, TEACHER = 64, 96  # width


@dataclass(frozen=True)
class Models:
    """Attributes:
    student: Knows the lengths that it has seen, more or less.
    right, wrong: Teachers; the second one answers what the student has not seen by a rule of its own.
    """

    student: Model
    right: Model
    wrong: Model


@dataclass(frozen=True)
class World:
    """Attributes:
    family: Of its problems.
    models: Before the run.
    train: The prompts, with the solutions that the verifier knows.
    wrong_teacher: bool (N,): prompts whose teacher is the wrong one.
    kind: int64 (N,): 0 hopeless, 1 frontier, 2 mastered, by pass rates that were measured before labels were changed
        and holes made.
    held_out: Problems to judge by.
    second: Held-out problems of the second skill, where there is one.
    """

    family: str
    models: Models
    train: Problems
    wrong_teacher: Tensor
    kind: Tensor
    held_out: Problems
    second: Problems | None


def prepare(family: str, second_skill: bool, seed: int, cache: Path) -> Models:
    """Both teachers and the student, trained once a seed and read again afterwards."""
    file = cache / f"{_name(family, second_skill, seed)}.pt"
    models = Models(Model(STUDENT), Model(TEACHER), Model(TEACHER))
    if file.exists():
        for name, state in torch.load(file, weights_only=True).items():
            getattr(models, name).load_state_dict(state)
        return models
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    torch.manual_seed(seed)
    models = Models(Model(STUDENT), Model(TEACHER), Model(TEACHER))
    truth = make(family, draw_lengths(TRAINING, ALL, generator), generator)
    other = make("copy", draw_lengths(TRAINING, SEEN, generator), generator)
    pretrain(models.right, truth, generator, lambda loss: loss < 0.005)
    models.wrong.load_state_dict(models.right.state_dict())
    pretrain(models.wrong, misled(truth), generator, lambda loss: loss < 0.005)
    seen = truth[torch.isin(truth.lengths, torch.tensor(SEEN))]
    judged = make(family, draw_lengths(512, SEEN, generator), generator)

    def knows_enough(loss: float) -> bool:
        return loss < 1.2 and measured(family, models.student, judged, 1, generator).mean().item() >= KNOWN

    if second_skill:
        pretrain(models.student, other, generator, lambda loss: loss < 0.02)
        # The first skill is learned beside the second one, so that it is not forgotten before the run.
        seen = join([seen, other])
    pretrain(models.student, seen, generator, knows_enough)
    _keep({name: model.state_dict() for name, model in vars(models).items()}, file)
    return models


def _name(family: str, second_skill: bool, seed: int) -> str:
    return f"{family}-{'two' if second_skill else 'one'}-{seed}"


def _keep(values: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")  # two runs may make the same file at a time
    torch.save(values, unfinished)
    unfinished.rename(file)


def misled(problems: Problems) -> Problems:
    """The same problems; where the student has not seen the length, every symbol of the solution is one too high."""
    solutions = problems.solutions
    shifted = ((solutions + 1) % SYMBOLS).where(solutions < SYMBOLS, solutions)
    unseen = ~torch.isin(problems.lengths, torch.tensor(SEEN))
    return Problems(problems.prompts, shifted.where(unseen[:, None], solutions), problems.lengths)


def build(regime: Regime, family: str, seed: int, cache: Path) -> World:
    """The world of a regime and a seed: the same for all arms."""
    models = prepare(family, regime.second_skill, seed, cache)
    generator = torch.Generator().manual_seed(7_000_003 * (seed + 1))
    train, kind = _by_class(regime, family, seed, cache, generator)
    hopeless = (kind == 0).nonzero()[:, 0]
    wrong = torch.zeros(len(train), dtype=torch.bool)
    misleads = round((1 - regime.teacher) * len(hopeless))
    wrong[hopeless[torch.randperm(len(hopeless), generator=generator)[:misleads]]] = True
    train = _holed(_relabelled(train, regime.wrong_labels, generator), regime.holes, generator)
    return World(
        family,
        models,
        train,
        wrong,
        kind,
        make(family, draw_lengths(HELD_OUT, regime.lengths, generator), generator),
        make("copy", draw_lengths(512, SEEN, generator), generator) if regime.second_skill else None,
    )


def classes(rate: Tensor, lengths: Tensor) -> Tensor:
    """int64 (N,): 0 hopeless, 1 frontier, 2 mastered; −1: fits none, as a hopeless one of a length that was seen."""
    unseen = ~torch.isin(lengths, torch.tensor(SEEN))
    kind = torch.full_like(lengths, -1)
    kind[(rate >= FRONTIER[0]) & (rate <= FRONTIER[1])] = 1
    kind[rate >= MASTERED] = 2
    kind[(rate <= HOPELESS) & unseen] = 0
    return kind


def measured(family: str, student: Model, problems: Problems, samples: int, generator: torch.Generator) -> Tensor:
    """Pass rates by so many samples, (N,)."""
    repeated = problems[torch.arange(len(problems)).repeat_interleave(samples)]
    found = right(family, sample(student, repeated.prompts, generator), repeated.solutions)
    return found.view(-1, samples).float().mean(1)


def accuracy(family: str, model: Model, problems: Problems) -> float:
    """Of greedy responses."""
    if family == "sums":
        return right(family, sample(model, problems.prompts), problems.solutions).float().mean().item()
    # Where there is one way only, the greedy response is right if each of its tokens is the likeliest one after those
    # before it in the solution: one pass instead of one a token.
    solved = 0
    for start in range(0, len(problems), 128):
        part = problems[start : start + 128]
        with torch.no_grad():
            greedy = model.response_logits(part.prompts, part.solutions).argmax(-1)
        solved += int(right(family, greedy, part.solutions).sum())
    return solved / len(problems)


def candidates(family: str, second_skill: bool, seed: int, part: int, cache: Path) -> tuple[Problems, Tensor]:
    """Problems and the student's pass rates at them: the same for all regimes of a seed, measured once."""
    file = cache / f"{_name(family, second_skill, seed)}-candidates-{part}.pt"
    if file.exists():
        kept = torch.load(file, weights_only=True)
        rate = kept.pop("rate")
        return Problems(**kept), rate
    generator = torch.Generator().manual_seed(17_000_003 * (seed + 1) + part)
    problems = make(family, draw_lengths(CANDIDATES, ALL, generator), generator)
    rate = measured(family, prepare(family, second_skill, seed, cache).student, problems, SAMPLES, generator)
    _keep(vars(problems) | {"rate": rate}, file)
    return problems, rate


def _by_class(
    regime: Regime, family: str, seed: int, cache: Path, generator: torch.Generator
) -> tuple[Problems, Tensor]:
    shares = {0: regime.hopeless, 1: regime.frontier, 2: regime.mastered}
    wanted = {kind: round(share * regime.prompts) for kind, share in shares.items()}
    wanted[1] += regime.prompts - sum(wanted.values())
    found: dict[int, list[Problems]] = {kind: [] for kind in wanted}
    for part in range(100):
        missing = {kind: n - sum(map(len, found[kind])) for kind, n in wanted.items()}
        if not any(n > 0 for n in missing.values()):
            break
        problems, rate = candidates(family, regime.second_skill, seed, part, cache)
        of = classes(rate, problems.lengths)
        for kind, n in missing.items():
            found[kind].append(problems[(of == kind).nonzero()[:, 0][: max(0, n)]])
    else:
        raise ValueError(f"{family}: too few prompts of the classes {missing} among {100 * CANDIDATES} candidates")
    train = join([part for kind in wanted for part in found[kind]])
    kinds = torch.cat([torch.full((sum(map(len, found[kind])),), kind) for kind in wanted])
    order = torch.randperm(len(train), generator=generator)
    return train[order], kinds[order]


def _relabelled(train: Problems, share: float, generator: torch.Generator) -> Problems:
    """The verifier wants other answers for a share of the prompts."""
    which = torch.randperm(len(train), generator=generator)[: round(share * len(train))]
    solutions = train.solutions.clone()
    wrong = torch.randint(SYMBOLS, (len(which), RESPONSE), generator=generator)
    solutions[which] = wrong.where(solutions[which] < SYMBOLS, solutions[which])
    return Problems(train.prompts, solutions, train.lengths)


def _holed(train: Problems, share: float, generator: torch.Generator) -> Problems:
    which = torch.randperm(len(train), generator=generator)[: round(share * len(train))]
    prompts = train.prompts.clone()
    prompts[which] = with_holes(train[which], generator).prompts
    return Problems(prompts, train.solutions, train.lengths)


def fresh(model: Model) -> Model:
    """A copy to be trained."""
    return copy.deepcopy(model)
