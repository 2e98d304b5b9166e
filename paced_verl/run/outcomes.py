"""How a prompt's rollouts ended, and when so many end badly that the run must end, too.

verl replaces a prompt whose group of rollouts failed (in its asynchronous trainers), or whose rewards are all the same
(under DAPO's ``algorithm.filter_groups``), as often as it takes. A cause that every group has would go on for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from paced_verl.run.group import Group
from paced_verl.run.tokens import Tokens

LEAST_FAILED = 16  # prompts: fewer may fail in a row by chance
LEAST_DROPPED = 256  # prompts: where one group in 50 is mixed, so many in a row without one happen in 6 of 1000
DROPPED_BATCHES = 10  # what verl's DAPO recipes set as max_num_gen_batches


@dataclass(frozen=True)
class Outcome:
    """How the rollouts of one prompt ended.

    Attributes:
        prompt: Position in the training set.
        successes: Correct responses among those scored, where the worker looks at whole groups; otherwise 0.
        responses: Scored responses, or 0 likewise.
        dropped: Whether DAPO's filter drops the group.
        error: The first error of a session, if one failed.
        teacher_tokens: What the teacher read and wrote for the group.
    """

    prompt: int
    successes: int = 0
    responses: int = 0
    dropped: bool = False
    error: str | None = None
    teacher_tokens: float = 0.0


class Visit:
    """The rollouts of one prompt, until the last has ended.

    Args:
        prompt: Position in the training set.
        sessions: Number of rollouts.

    Attributes:
        group: Their responses.
    """

    def __init__(self, prompt: int, sessions: int):
        self.prompt, self.group = prompt, Group(sessions)
        self._sessions_left = sessions
        self._error: str | None = None
        self._teacher_tokens = 0.0

    def end(self, error: str | None, teacher_tokens: float) -> bool:
        """Enter the end of a session; returns whether it was the last."""
        self._error = self._error or error
        self._teacher_tokens += teacher_tokens
        self._sessions_left -= 1
        return self._sessions_left == 0

    def outcome(self, filtered: bool) -> Outcome:
        """How it ended.

        Args:
            filtered: Whether DAPO's filter is on.
        """
        return Outcome(
            self.prompt,
            successes=self.group.successes,
            responses=self.group.responses,
            dropped=filtered and self._error is None and self.group.uniform,
            error=self._error,
            teacher_tokens=self._teacher_tokens,
        )


@dataclass
class Report:
    """What workers have seen since they were last asked.

    Attributes:
        errors: One a response that failed, those of estimates and validation included.
        outcomes: One a training prompt whose rollouts have all ended.
        tokens: What servers read and wrote for them.
    """

    errors: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens)

    def add(self, others: Iterable[Report]) -> None:
        """Take up what others say."""
        for other in others:
            self.errors += other.errors
            self.outcomes += other.outcomes
            self.tokens.update(other.tokens)

    @property
    def dropped_tokens(self) -> float:
        """Tokens that the teacher read for groups that are dropped."""
        return sum(outcome.teacher_tokens for outcome in self.outcomes if outcome.dropped)


class RefillLimit:
    """Counts the prompts in a row that were replaced, and says when it is enough.

    Failed prompts are counted from the last one whose rollouts all ended well, dropped ones from the last one that
    trains. What is reported together counts as simultaneous: a single good prompt among them begins both counts anew.

    Args:
        failed: So many failed prompts in a row are too many.
        dropped: So many dropped ones are.
    """

    def __init__(self, failed: int, dropped: int):
        self.most_failed, self.most_dropped = failed, dropped
        self._failed = self._dropped = 0
        self._hopeless = self._mastered = 0
        self._error: str | None = None

    @classmethod
    def of(cls, batch: int, batches_in_flight: float, gen_batches: int) -> RefillLimit:
        """The limits of a run.

        Quick failures are reported before slow successes, so the limit is twice what can be on its way at a time.

        Args:
            batch: Prompts of a step.
            batches_in_flight: So many batches are on their way at most.
            gen_batches: ``algorithm.filter_groups.max_num_gen_batches``; 0: a limit that a data set with few mixed
                groups still passes.
        """
        failed = max(LEAST_FAILED, int(2 * batch * batches_in_flight))
        return cls(failed, gen_batches * batch if gen_batches > 0 else max(LEAST_DROPPED, DROPPED_BATCHES * batch))

    def observe(self, outcomes: list[Outcome]) -> None:
        """Count what was reported together."""
        dropped = [outcome for outcome in outcomes if outcome.dropped]
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if len(failed) < len(outcomes):
            self._failed, self._error = 0, None
        else:
            self._failed += len(failed)
            self._error = self._error or next(iter(failed), None)
        if len(failed) + len(dropped) < len(outcomes):
            self._dropped = self._hopeless = self._mastered = 0
        else:
            self._dropped += len(dropped)
            self._hopeless += sum(outcome.successes == 0 for outcome in dropped)
            self._mastered += sum(outcome.successes == outcome.responses for outcome in dropped)

    def problem(self) -> str | None:
        """Why the run cannot go on, and what to do."""
        if self._failed >= self.most_failed:
            return (
                f"the rollouts of {self._failed} prompts in a row failed and verl would replace them for ever. "
                f"The first error: {self._error}"
            )
        if self._dropped >= self.most_dropped:
            return (
                f"algorithm.filter_groups dropped {self._dropped} prompts in a row ({self._mastered} with all responses"
                f" correct, {self._hopeless} with none) and verl would replace them for ever. Train on problems that "
                "the student solves sometimes, raise actor_rollout_ref.rollout.n, switch the filter off, or set "
                "algorithm.filter_groups.max_num_gen_batches to the number of batches to try."
            )
        return None
