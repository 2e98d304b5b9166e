"""Which questions can be too long for a teacher's server: what is known of it before the student has responded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paced_verl.checks.models import Limit
from paced_verl.config import ConfigError
from paced_verl.forcing.questions import Question, Teacher, other_solution
from paced_verl.teacher.context import TeacherContext

TOO_LONG, NOTHING_TO_SHOW = "prompt and response are longer than its server reads", "no such response to show"
"""Why a teacher is not asked about a response."""


class Prompts(Protocol):
    """Builds what a teacher reads; :class:`paced_verl.teacher.prompts.Prompts`."""

    def teacher(
        self, row: Mapping[str, Any], context: TeacherContext, shown: Mapping[str, str] | None = None
    ) -> list[int]: ...


@dataclass(frozen=True)
class TooLong:
    """Questions whose longest sequence a teacher's server does not read.

    Attributes:
        teacher: Whose.
        limit: Of the server.
        questions, of: How many, of how many.
        hopeless: Of these, not even with a response of one token.
        longest: Tokens that all of them would need.
    """

    teacher: Teacher
    limit: Limit
    questions: int
    of: int
    hopeless: int
    longest: int

    def __str__(self) -> str:
        return (
            f"{self.teacher.name}: {self.questions} of {self.of} questions can need up to {self.longest} tokens, and "
            f"its server reads {self.limit.tokens} ({self.limit.key}). Raise that to {self.longest} or more; responses "
            "that do not fit are left out, and counted"
        )


def too_long(
    questions: Sequence[Question],
    everyone: Sequence[Teacher],
    prompts: Prompts,
    response_length: int,
    solution_key: str,
) -> list[TooLong]:
    """Teachers whose servers may be asked for more than they read, by the data and the longest responses there can be.

    Args:
        questions: Of the measurement.
        everyone: Teachers.
        prompts: Of the teachers.
        response_length: Tokens of a response at most, of one that is scored as of one that is shown.
        solution_key: Of the solution that ``other`` shows.

    Raises:
        ConfigError: A teacher cannot be asked about any question, or the student not about one.
    """
    found = []
    for teacher in everyone:
        if teacher.limit is None:
            continue
        responses = response_length * (1 + len(teacher.context.needs - {"other"}))
        lengths = []
        for i, question in enumerate(questions):
            shown = dict.fromkeys(teacher.context.needs, "") | (
                {"other": other_solution(questions, i, solution_key) or ""} if "other" in teacher.context.needs else {}
            )
            lengths.append(len(prompts.teacher(question.row, teacher.context, shown)) + 1)
        over = [length for length in lengths if length + responses > teacher.limit.tokens]
        hopeless = sum(length + 1 > teacher.limit.tokens for length in lengths)
        if hopeless == len(questions):
            raise ConfigError(
                f"{teacher.limit.key}={teacher.limit.tokens}: no question fits under {teacher.name}, not even with a "
                f"response of one token. Set it to {max(lengths) + responses} or more."
            )
        if over:
            longest = max(over) + responses
            found.append(TooLong(teacher, teacher.limit, len(over), len(questions), hopeless, longest))
    return found


def refuse_long_for_student(questions: Sequence[Question], limit: Limit | None, response_length: int) -> None:
    """The student scores its own longest response, and writes one token more.

    Raises:
        ConfigError: Its server does not read that much.
    """
    needed = [len(question.ids) + response_length + 1 for question in questions]
    over = sum(limit is not None and tokens > limit.tokens for tokens in needed)
    if limit is not None and over:
        raise ConfigError(
            f"{limit.key}={limit.tokens}: {over} of {len(questions)} questions can need {max(needed)} tokens: the "
            f"prompt, a response of {response_length}, and one that is written when these are scored. Set it to "
            f"{max(needed)} or more."
        )
