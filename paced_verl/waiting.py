"""Prompts that wait for a teacher response, and who writes it. No Ray, no verl."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from paced_verl.config import PacedConfig
from paced_verl.passrate import is_correct
from paced_verl.targets import Target, TargetStore, prompt_hash

SAVE_SECONDS = 60.0  # between two writes of the file


class Writer(Protocol):
    """Writes responses for rows that wait for one."""

    def write(self, waiting: Waiting) -> dict[str, float]:
        """Take, judge and settle rows until none waits; returns counts of its own."""
        ...


class Waiting:
    """Rows that wait for a response: handed out to a writer, judged, stored, or handed out again if not kept.

    A context manager: however it is left, by an error or Ctrl-C too, what was settled is in the file.

    Args:
        prompts: Positions in the training set.
        dataset: verl's, by position.
        store: Where responses go; written to ``targets.file``.
        paced: ``targets`` says what is kept, after how many attempts a prompt is skipped; ``pass_rate.threshold`` what
            is correct.
        tokenizer: The student's.
        reward: verl's reward function.
    """

    def __init__(
        self,
        prompts: Iterable[int],
        dataset: Any,
        store: TargetStore,
        paced: PacedConfig,
        tokenizer: Any,
        reward: Callable[..., Any],
    ):
        self._attempts = dict.fromkeys(prompts, paced.targets.attempts)
        self._queue = deque(self._attempts)
        self._dataset, self._store, self._paced = dataset, store, paced
        self._tokenizer, self._reward = tokenizer, reward
        self._saved, self._unsaved = time.monotonic(), False
        self.progress = tqdm(total=len(self._queue), desc="Teacher responses", unit="prompt")

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self._save()

    def take(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """The next rows to ask for, with their positions; none if all are settled or taken."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self._save()
        prompts = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        return [(prompt, self._dataset[prompt]) for prompt in prompts]

    def judge(self, row: dict[str, Any], token_ids: Sequence[int]) -> Target:
        """The response as a target; without tokens if it is not kept. May run in any thread.

        Args:
            row: As taken.
            token_ids: In the student's tokens, end of sequence included; empty if there is nothing to keep.
        """
        nothing = Target((), prompt_hash=prompt_hash(row["raw_prompt"]), correct=False)
        if not token_ids:
            return nothing
        response = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        result = self._reward(
            data_source=row["data_source"],
            solution_str=response,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )
        score, extra = (result["score"], result) if isinstance(result, dict) else (result, {})
        correct = is_correct(score, extra, self._paced.pass_rate.threshold)
        if self._paced.targets.keep == "correct" and not correct:
            return nothing
        return Target(tuple(token_ids), response, correct, nothing.prompt_hash)

    def settle(self, prompt: int, target: Target) -> None:
        """Store a taken prompt's target, or let the prompt wait again if it has no tokens and attempts are left."""
        self._attempts[prompt] -= 1
        if not target.token_ids and self._attempts[prompt]:
            self._queue.appendleft(prompt)
            return
        self._store.add(prompt, target)
        self._unsaved = True
        self.progress.update()

    def _save(self) -> None:
        if self._unsaved:
            assert self._paced.targets.file is not None
            self._store.save(self._paced.targets.file)
        self._saved, self._unsaved = time.monotonic(), False
