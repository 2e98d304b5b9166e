"""A measurement from its first rollout to its last: what is there is not asked for again."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paced_verl.alignment.nodes import Node, TopOf, node
from paced_verl.alignment.result import Aligned, align, measured
from paced_verl.alignment.score import Interval, interval
from paced_verl.alignment.targets import choose_positions
from paced_verl.alignment.tree import FREE, Rollout, Tree
from paced_verl.alignment.visits import ROUNDS, Wanted, missing, plan
from paced_verl.config import AlignmentConfig
from paced_verl.errors import PacedError
from paced_verl.forcing.ask import Student, Written, together, top_of
from paced_verl.forcing.lengths import NOTHING_TO_SHOW, TOO_LONG, Prompts
from paced_verl.forcing.questions import Answered, Question, other_solution, shown
from paced_verl.forcing.questions import Teacher as Who
from paced_verl.forcing.store import Entry, Store
from paced_verl.teacher.protocol import Teacher

CHUNK = 512
"""Rollouts of a part: what a kill may cost."""
Asked = Callable[[], Coroutine[Any, Any, Entry]]


@dataclass(frozen=True)
class Scoring:
    """Who says what of responses.

    Attributes:
        teachers: In the order of the results.
        servers: By their keys; ``None``: the student's, which score for themselves, too.
        prompts: Of the teachers.
        solution_key: Of the solution that ``other`` shows.
    """

    teachers: Sequence[Who]
    servers: Mapping[str | None, Teacher]
    prompts: Prompts
    solution_key: str


class NothingToMeasureError(PacedError):
    """The student's responses leave nothing to compare."""


class Measurement:
    """A measurement in a folder.

    Args:
        settings: What is measured.
        questions: Of what.
        student: Whose rollouts.
        scoring: Teachers.
        store: Where everything is kept.
        vocabulary: Tokens of the student.
        seed: Of the choice of positions.
    """

    def __init__(
        self,
        settings: AlignmentConfig,
        questions: Sequence[Question],
        student: Student,
        scoring: Scoring,
        store: Store,
        vocabulary: int,
        seed: int,
    ):
        self.settings, self.questions, self.student, self.scoring = settings, questions, student, scoring
        self.store, self.vocabulary, self.seed = store, vocabulary, seed
        self.entries = store.entries()
        self.started = time.monotonic()
        self.before = len(self.entries)

    async def run(self, say: Callable[[str], None] = print) -> list[Node]:
        """Measure what has not been measured, until it is enough; returns the nodes."""
        await self._free(say)
        nodes = self.store.nodes()
        if nodes is None:
            nodes = await self._choose()
            self.store.keep_nodes(nodes)
        wanted = plan(nodes, self.responses(), self.settings.divergence, self.settings.visits)
        for round_ in range(1, ROUNDS + 1):
            left = missing(wanted, self.trees(), self.student.policy.ends, round_)
            if not await self._force(left):
                say(f"round {round_} of {ROUNDS}: the budget is spent; {self._pace()}")
                break
            found = self.intervals(nodes)
            say(f"round {round_} of {ROUNDS}: {self._pace()}; {_in_words(found)}")
            if self._narrow_enough(found):
                say(f"every interval is within ± {self.settings.budget.half_width:g}: enough")
                break
        return nodes

    # ------------------------------------------------------------------ what is known

    def free(self) -> dict[int, list[Written]]:
        """The free responses of each question, in the order in which they came."""
        found: dict[int, list[Written]] = {i: [] for i in range(len(self.questions))}
        for entry in self.entries:
            if entry.written.rollout.forced == FREE:
                found[entry.question].append(entry.written)
        return found

    def carriers(self) -> dict[int, list[Rollout]]:
        """The same, as rollouts."""
        return {i: [written.rollout for written in found] for i, found in self.free().items()}

    def responses(self) -> dict[int, list[tuple[int, ...]]]:
        """Their tokens."""
        return {i: [rollout.tokens for rollout in found] for i, found in self.carriers().items()}

    def trees(self) -> dict[int, Tree]:
        """All rollouts that count, by question."""
        found: dict[int, list[Rollout]] = {i: [] for i in range(len(self.questions))}
        for entry in self.entries:
            if not entry.written.truncated:
                found[entry.question].append(entry.written.rollout)
            elif self.settings.truncated == "fail":
                rollout = entry.written.rollout
                found[entry.question].append(Rollout(rollout.tokens, rollout.forced, 0.0))
        return {i: Tree(rollouts) for i, rollouts in found.items()}

    def aligned(self, nodes: Sequence[Node]) -> list[Aligned]:
        """Scores of every teacher, by what is known until now."""
        found = measured(nodes, self.trees(), self.carriers(), self.student.policy.ends)
        names = [teacher.name for teacher in self.scoring.teachers]
        return align(found, names, self.settings.divergence, (), self.settings.support)

    def intervals(self, nodes: Sequence[Node]) -> dict[str, Interval]:
        """Of every teacher and divergence."""
        return {f"{one.teacher}, {one.divergence}": interval(one.scores) for one in self.aligned(nodes)}

    # ------------------------------------------------------------------ asking

    async def _free(self, say: Callable[[str], None]) -> None:
        asked = [
            functools.partial(self._finish, i)
            for i, there in self.free().items()
            for _ in range(self.settings.rollouts - len(there))
        ]
        await self._in_parts(asked, limited=False)
        successes = [rollout.success for found in self.carriers().values() for rollout in found]
        correct = np.mean(successes)
        if correct in (0, 1):
            raise NothingToMeasureError(
                f"All of {len(successes)} free responses were {'correct' if correct else 'wrong'}, so "
                "nothing that the student says makes a difference and every gradient of success is 0. Look at the "
                f"responses in {self.store.parts} and at the reward function; else choose other prompts "
                "(paced.pass_rate.file draws them by pass rate)."
            )
        say(
            f"{len(self.questions)} questions, {self.settings.rollouts} free responses each: {correct:.0%} correct; "
            f"{self._pace()}"
        )

    async def _force(self, left: Sequence[Wanted]) -> bool:
        """Whether all of it was forced before the budget was spent."""
        asked = [functools.partial(self._finish, one.question, one.begun) for one in left for _ in range(one.visits)]
        return await self._in_parts(asked, limited=True)

    async def _in_parts(self, asked: Sequence[Asked], limited: bool) -> bool:
        for start in range(0, len(asked), CHUNK):
            if limited and self._spent():
                return False
            entries = await together(asked[start : start + CHUNK])
            self.store.add(entries)
            self.entries += entries
        return True

    async def _finish(self, question: int, begun: tuple[int, ...] = ()) -> Entry:
        asked = self.questions[question]
        return Entry(question, await self.student.finish(asked.row, asked.ids, begun))

    async def _choose(self) -> list[Node]:
        """Choose positions, and have everybody say what it would do there."""
        nodes = []
        for i, answers in self.free().items():
            rng = np.random.default_rng([self.seed, self.questions[i].prompt])
            known = [Answered(a.rollout.tokens, a.text, a.rollout.success == 1) for a in answers]
            chosen = choose_positions([len(answer.tokens) for answer in known], self.settings.nodes, rng)
            carriers = sorted(set(chosen.rollout.tolist()))
            asked = [functools.partial(self._said, i, carrier, known) for carrier in carriers]
            said = dict(zip(carriers, await together(asked), strict=True))
            for carrier, position, inclusion in zip(
                chosen.rollout.tolist(), chosen.position.tolist(), chosen.inclusion.tolist(), strict=True
            ):
                student, others = said[carrier]
                found = node(
                    (i, carrier, position, inclusion),
                    student[position],
                    [None if isinstance(other, str) else other[position] for other in others],
                    self.vocabulary,
                    self.settings.threshold,
                    self.settings.tokens,
                )
                unasked = tuple(other if isinstance(other, str) else "" for other in others)
                nodes.append(dataclasses.replace(found, unasked=unasked))
        return nodes

    async def _said(
        self, question: int, carrier: int, known: Sequence[Answered]
    ) -> tuple[list[TopOf], list[list[TopOf] | str]]:
        """What the student and every teacher say of a free response; of who cannot be asked, why."""
        asked, response, servers = self.questions[question], known[carrier].tokens, self.scoring.servers
        other = other_solution(self.questions, question, self.scoring.solution_key)
        found: list[list[TopOf] | str] = []
        for teacher in self.scoring.teachers:
            beside = shown(teacher.context, known[carrier], known, other)
            if beside is None:
                found.append(NOTHING_TO_SHOW)
                continue
            prompt = self.scoring.prompts.teacher(asked.row, teacher.context, beside)
            fits = teacher.fits(len(prompt) + len(response))
            found.append(await top_of(servers[teacher.key], teacher.key, prompt, response) if fits else TOO_LONG)
        return await top_of(servers[None], None, asked.ids, response), found

    # ------------------------------------------------------------------ when it is enough

    def _spent(self) -> bool:
        forced = [e.written for e in self.entries if e.written.rollout.forced != FREE]
        budget = self.settings.budget
        return bool(
            (budget.rollouts and len(forced) >= budget.rollouts)
            or (budget.tokens and sum(written.generated for written in forced) >= budget.tokens)
            or (budget.minutes and time.monotonic() - self.started >= 60 * budget.minutes)
        )

    def _narrow_enough(self, found: Mapping[str, Interval]) -> bool:
        widest = self.settings.budget.half_width
        return widest is not None and all(one.half_width <= widest for one in found.values())

    def _pace(self) -> str:
        seconds, new = time.monotonic() - self.started, len(self.entries) - self.before
        return f"{len(self.entries):,} rollouts, {new / max(seconds, 1e-9):.0f} a second"


def _in_words(found: Mapping[str, Interval]) -> str:
    return "; ".join(f"{name} {one.value:+.2f} ± {one.half_width:.2f}" for name, one in found.items())
