"""Which prompts are looked at, who teaches, and what each teacher is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paced_verl.alignment.targets import FIFTHS, fifth_of
from paced_verl.checks.models import Limit
from paced_verl.errors import PacedError
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.teacher.context import TeacherContext

STUDENT = "student"
"""The name of the student's own servers among the teachers' models."""
SIMILAR = 0.8
"""Share of tokens that a rollout may have in common with the one that is scored, to be shown beside it."""


@dataclass(frozen=True)
class Question:
    """A prompt that is looked at.

    Attributes:
        prompt: Its position in the training set.
        row: Of verl's data set.
        ids: The student's prompt.
        pass_rate: As a table knows it; NaN where none does.
    """

    prompt: int
    row: Mapping[str, Any]
    ids: tuple[int, ...]
    pass_rate: float


def choose_prompts(size: int, table: PassRateTable | None, count: int, seed: int) -> list[int]:
    """Positions of so many prompts, at random: equal numbers of each fifth of the pass rate, as far as they go.

    Args:
        size: Prompts of the training set.
        table: Pass rates; prompts that were never sampled are left out. ``None``: no prompt is preferred.
        count: How many; all of them if there are no more.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    if table is None:
        return sorted(rng.permutation(size)[:count].tolist())
    seen = np.flatnonzero(table.samples > 0)
    fifth = fifth_of(table.rates(seen))
    queues = [rng.permutation(seen[fifth == i]).tolist() for i in range(FIFTHS)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return sorted(chosen)


@dataclass(frozen=True)
class Teacher:
    """A model under a context.

    Attributes:
        name: As results call it, such as ``teacher_model/solution``.
        key: By which verl routes to it; ``None``: the student's own servers.
        context: What it sees.
        limit: Of its server; ``None``: not known.
    """

    name: str
    key: str | None
    context: TeacherContext
    limit: Limit | None = None

    def fits(self, tokens: int) -> bool:
        """Whether its server can score a prompt and a response of so many tokens: it writes one more."""
        return self.limit is None or tokens + 1 <= self.limit.tokens


def teachers(
    models: Mapping[str, str], contexts: Sequence[TeacherContext], limits: Mapping[str | None, Limit]
) -> list[Teacher]:
    """Every model and the student under every context, but the student that sees no more than itself.

    Args:
        models: The key that verl routes by, by the name in the configuration.
        contexts: What each sees.
        limits: Of the servers, where they are known; ``None``: the student's.

    Raises:
        PacedError: That leaves nobody.
    """
    found = [
        Teacher(f"{name or STUDENT}/{context.name}", None if name is None else models[name], context, limits.get(name))
        for name in (*models, None)
        for context in contexts
        if name is not None or context.privileged
    ]
    if not found:
        raise PacedError(
            "paced.alignment.contexts=['none']: the student that sees nothing more is no teacher of itself. Name a "
            "context (solution, answer, rollout, …), or a model (distillation.teacher_models.teacher_model.model_path)."
        )
    return found


@dataclass(frozen=True)
class Answered:
    """A free response of the student, with its text.

    Attributes:
        tokens: Of the response.
        text: Decoded.
        correct: Whether the verifier took it.
    """

    tokens: tuple[int, ...]
    text: str
    correct: bool


def shown(
    context: TeacherContext, scored: Answered, answers: Sequence[Answered], other: str | None
) -> dict[str, str] | None:
    """What a context shows that no row has, for the teacher of one response.

    A correct and a wrong response are other ones than the one that is scored, and no near copies of it: what a teacher
    has read it would only repeat.

    Args:
        context: Of the teacher.
        scored: The response it will score.
        answers: All free ones of the question.
        other: The solution of another problem.

    Returns:
        By name; ``None`` where the question has no such response.
    """
    found: dict[str, str] = {}
    for name in context.needs:
        text = other if name == "other" else _another(scored, answers, correct=name == "rollout")
        if text is None:
            return None
        found[name] = text
    return found


def _another(scored: Answered, answers: Sequence[Answered], correct: bool) -> str | None:
    return next(
        (a.text for a in answers if a.correct == correct and similarity(a.tokens, scored.tokens) <= SIMILAR), None
    )


def other_solution(questions: Sequence[Question], question: int, solution_key: str) -> str | None:
    """The solution of the next question that has one, and is another one; ``None``: there is none."""
    for step in range(1, len(questions)):
        other = questions[(question + step) % len(questions)]
        solution = (other.row.get("extra_info") or {}).get(solution_key)
        if isinstance(solution, str) and solution.strip():
            return solution
    return None


def similarity(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of the longer response's places at which both have the same token."""
    longest = max(len(first), len(second))
    same = sum(a == b for a, b in zip(first, second, strict=False))
    return same / longest if longest else 1.0
