"""Measures how the student does, or the teacher, with the servers and the reward that the run trains with.

Prompts go through verl's validation path (no teacher is asked), each as often as asked for: either the run waits for
them, or they are sent beside a step's own rollouts and collected when these are there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import transfer_queue as tq
from tqdm import tqdm
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from paced_verl import fields
from paced_verl.pacing.protocol import IntArray
from paced_verl.pacing.schedule import Responses
from paced_verl.run.measure import Counts
from paced_verl.run.outcomes import LEAST_FAILED
from paced_verl.run.sessions import sessions
from paced_verl.training.rows import correct_rows

PARTITION = "val"


class Measuring:
    """The student's servers and reward, asked how the student does.

    Args:
        prompts: A data set, rows numbered by ``paced_prompt``.
        temperature: Sampling temperature (top-p and top-k are off).
        threshold: A response is correct from this score on.
        chunk: Prompts handed to the servers at once.
        agent_loop_manager: verl's, to dispatch to.
        replay_buffer: verl's, to collect from.

    Attributes:
        under_way: The step in which prompts were sent whose answers nobody has collected; ``None``: there are none.
    """

    def __init__(
        self,
        prompts: Any,
        *,
        temperature: float,
        threshold: float,
        chunk: int,
        agent_loop_manager: Any,
        replay_buffer: Any,
    ):
        self.prompts, self.temperature, self.threshold = prompts, temperature, threshold
        self.chunk, self.manager, self.replay_buffer = chunk, agent_loop_manager, replay_buffer
        self.under_way: int | None = None
        self._sent: list[_Tally] = []

    def wait_for(self, which: IntArray, samples: int, step: int, by: Responses = "student") -> Counts:
        """Sample prompts and count their correct responses.

        Two chunks are in flight, so that the servers stay busy while the slowest responses of one are finished.

        Args:
            which: Positions in the data set, (P,), each once.
            samples: Responses a prompt (K).
            step: The training step.
            by: Whose responses.

        Raises:
            RuntimeError: Not one response of the first chunks was scored, of prompts enough that it is no chance.
        """
        assert self.under_way is None, "collect what was sent before"
        tally = _Tally(which, by)
        chunks = [which[start : start + self.chunk] for start in range(0, len(which), self.chunk)]
        waiting = [self._submit(part, samples, step, by) for part in chunks[:1]]
        with tqdm(total=len(which), desc="Pass rates", unit="prompt", disable=len(chunks) < 2) as progress:
            for following in [*chunks[1:], *[None] * bool(waiting)]:
                if following is not None:
                    waiting.append(self._submit(following, samples, step, by))
                size = waiting.pop(0)
                self._collect([tally], size, step)
                progress.update(size)
        return tally.counts

    def likelihood(self, which: IntArray, responses: Sequence[Sequence[int]], step: int) -> np.ndarray:
        """Have the student read responses; see :class:`~paced_verl.run.measure.Likelihood`.

        Args:
            which: Positions in the data set, (P,), each once.
            responses: Token ids, one response a prompt.
            step: The training step.
        """
        assert self.under_way is None, "collect what was sent before"
        found = np.full(len(which), np.nan)
        place = {prompt: i for i, prompt in enumerate(which.tolist())}
        for start in range(0, len(which), self.chunk):
            part = slice(start, start + self.chunk)
            size = self._submit(which[part], 1, step, "student", responses[part])
            keys, rows = self._take(size, step, [fields.PROMPT, "rm_scores"])
            if keys:
                scores = [float(score.sum()) for score in rows["rm_scores"].unbind()]
                found[[place[_plain(prompt)] for prompt in rows[fields.PROMPT]]] = scores
        return found

    def send(self, which: IntArray, samples: int, step: int, by: Responses = "student") -> None:
        """Have prompts sampled while something else goes on; :meth:`collect` waits for all that were sent.

        Args:
            which: Positions in the data set, (P,), each once.
            samples: Responses a prompt (K).
            step: The training step.
            by: Whose responses.
        """
        self._sent.append(_Tally(which, by))
        self.under_way = step
        self._submit(which, samples, step, by)

    def collect(self) -> dict[Responses, Counts]:
        """What became of the prompts that were sent, by whose responses.

        Raises:
            RuntimeError: As of :meth:`wait_for`.
        """
        assert self.under_way is not None, "nothing was sent"
        tallies, step = self._sent, self.under_way
        self._sent, self.under_way = [], None
        self._collect(tallies, sum(len(tally.counts.prompts) for tally in tallies), step)
        return {tally.by: tally.counts for tally in tallies}

    def _collect(self, tallies: list[_Tally], size: int, step: int) -> None:
        names = [fields.PROMPT, fields.BY_TEACHER, "rm_scores", "extra_fields"]
        if any(tally.by == "teacher" for tally in tallies):
            names.append("responses")
        keys, rows = self._take(size, step, names)
        for tally in tallies:
            tally.add(keys, rows, self.threshold)

    def _take(self, size: int, step: int, names: list[str]) -> tuple[list[str], Any]:
        """Wait for the rollouts of so many prompts, and take these fields of them out of the queue."""
        batch, _ = self.replay_buffer.sample(global_steps=step, partition_id=PARTITION, batch_size=size)
        if not batch.keys:
            return [], None
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=PARTITION, select_fields=names)
        tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
        return batch.keys, rows

    def _submit(
        self, chunk: IntArray, samples: int, step: int, by: Responses, reads: Sequence[Sequence[int]] | None = None
    ) -> int:
        """Dispatch a chunk as validation rows, as ``PPOTrainer._validate`` does; returns its number of prompts."""
        rows = collate_fn([self.prompts[i] for i in chunk.tolist()])
        rows["uid"] = np.array([str(uuid.uuid4()) for _ in chunk], dtype=object)
        batch = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(batch, "global_steps", step)
        tu.assign_non_tensor_data(batch, "validate", True)
        tu.assign_non_tensor_stack(batch, "__rollout_n__", [samples] * len(batch))
        tu.assign_non_tensor_stack(batch, fields.TEMPERATURE, [self.temperature] * len(batch))
        tu.assign_non_tensor_stack(batch, fields.BY_TEACHER, [by == "teacher"] * len(batch))
        if reads is not None:
            tu.assign_non_tensor_stack(batch, fields.TARGET, [list(response) for response in reads])
        tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in range(len(batch))]
        tq.kv_batch_put(keys=list(batch["uid"]), partition_id=PARTITION, tags=tags)
        self.manager.generate_sequences(batch)
        return len(batch)


class _Tally:
    """Counts the rollouts of prompts by one of the two, chunk by chunk."""

    def __init__(self, which: IntArray, by: Responses):
        self.by = by
        self.place = {prompt: i for i, prompt in enumerate(which.tolist())}
        successes, samples, tokens = (np.zeros(len(which), np.int64) for _ in range(3))
        self.correct: list[list[int] | None] = [None] * len(which) if by == "teacher" else []
        self.counts = Counts(which, successes, samples, tokens, self.correct)

    def add(self, keys: list[str], rows: Any, threshold: float) -> None:
        """Count its rows among these."""
        mine = np.array(
            [_plain(flag) == (self.by == "teacher") for flag in rows[fields.BY_TEACHER]] if keys else [], bool
        )
        last = sessions(keys).last & mine
        if not last.any():
            if len(self.place) >= LEAST_FAILED and not self.counts.samples.any():
                raise RuntimeError(
                    f"Pass rates cannot be estimated: not one response of the {self.by} to the first prompts was "
                    "scored."
                )
            return
        prompts, scores = [_plain(prompt) for prompt in rows[fields.PROMPT]], rows["rm_scores"].unbind()
        place = np.array([self.place[prompt] for prompt, own in zip(prompts, mine, strict=True) if own])
        # Scores are one a token. Every output of a session was generated; the last one has its reward.
        np.add.at(self.counts.tokens, place, [len(score) for score, own in zip(scores, mine, strict=True) if own])
        np.add.at(self.counts.samples, place[last[mine]], 1)
        correct = correct_rows(rows, threshold)
        np.add.at(self.counts.successes, place[last[mine]], correct[last])
        if self.by == "teacher":
            responses = rows["responses"].unbind()
            for own, row in zip(place[last[mine]].tolist(), np.flatnonzero(last).tolist(), strict=True):
                if correct[row] and self.correct[own] is None:
                    self.correct[own] = responses[row].tolist()


def _plain(value: Any) -> int:
    return int(getattr(value, "data", value))
