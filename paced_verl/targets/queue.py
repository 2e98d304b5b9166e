"""Prompts that wait for a teacher response, and who writes it. No Ray, no verl."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from paced_verl.config import TargetsConfig
from paced_verl.fingerprint import prompt_hash
from paced_verl.targets.judge import Judge
from paced_verl.targets.store import Target, TargetStore

SAVE_SECONDS = 60.0  # between two writes of the file,
SAVE_SHARE = 0.05  # which is written whole: of a large one, so much of the time


class Writer(Protocol):
    """Writes responses for rows that wait for one."""

    def write(self, waiting: Waiting) -> dict[str, float]:
        """Take, judge and settle rows until none waits; returns counts of its own."""
        ...


class Waiting:
    """Rows that wait for a response: handed out to a writer, stored, or handed out again if not kept.

    A context manager: however it is left, by an error or Ctrl-C too, the responses that were kept are in the file. That
    none could be had for a prompt is stored only where all rows have been settled: what cut the work short may be why.

    Args:
        prompts: Positions in the training set.
        dataset: verl's, by position.
        store: Where responses go; written to ``targets.file``.
        targets: Says what is kept, after how many attempts a prompt is skipped, and the file.
        judge: Says what is correct.
    """

    def __init__(self, prompts: Iterable[int], dataset: Any, store: TargetStore, targets: TargetsConfig, judge: Judge):
        self._attempts = dict.fromkeys(prompts, targets.attempts)
        self._queue = deque(self._attempts)
        self._skipped: dict[int, Target] = {}
        self._dataset, self._store, self._targets, self._judge = dataset, store, targets, judge
        self._save_at, self._unsaved = time.monotonic() + SAVE_SECONDS, False
        self.progress = tqdm(total=len(self._queue), desc="Teacher responses", unit="prompt")

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        if error is None:
            for prompt, nothing in self._skipped.items():
                self._store.add(prompt, nothing)
                self._unsaved = True
        self._save()

    @property
    def responses(self) -> int:
        """Number of prompts that have a response, from before too."""
        return self._store.responses

    def take(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """The next rows to ask for, with their positions; none if all are settled or taken."""
        if time.monotonic() >= self._save_at:
            self._save()
        prompts = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        return [(prompt, self._dataset[prompt]) for prompt in prompts]

    def judged(self, row: dict[str, Any], token_ids: Sequence[int]) -> Target:
        """The response as a target; without tokens if it is not kept. May run in any thread.

        Args:
            row: As taken.
            token_ids: In the student's tokens, end of sequence included; empty if there is nothing to keep.
        """
        hashed = prompt_hash(row["raw_prompt"])
        if token_ids:
            response, correct = self._judge(row, token_ids)
            if correct or self._targets.keep == "all":
                return Target(tuple(token_ids), response, correct, hashed)
        return Target((), correct=False, prompt_hash=hashed)

    def settle(self, prompt: int, target: Target) -> None:
        """Store a taken prompt's target, or let the prompt wait again if it has no tokens and attempts are left."""
        self._attempts[prompt] -= 1
        target = dataclasses.replace(target, tries=self._targets.attempts - self._attempts[prompt])
        if target.token_ids:
            self._store.add(prompt, target)
            self._unsaved = True
        elif self._attempts[prompt]:
            self._queue.appendleft(prompt)
            return
        else:
            self._skipped[prompt] = target
        self.progress.update()

    def _save(self) -> None:
        began = time.monotonic()
        if self._unsaved:
            assert self._targets.file is not None
            self._store.save(self._targets.file)
        ended = time.monotonic()
        self._save_at, self._unsaved = ended + max(SAVE_SECONDS, (ended - began) / SAVE_SHARE), False
