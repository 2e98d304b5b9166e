"""Measures how the student does, with the rollout servers and the reward that the run trains with.

Prompts go through verl's validation path (no teacher is asked), each as often as asked for: either the run waits for
them, or they are sent beside a step's own rollouts and collected when these are there.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import transfer_queue as tq
from tqdm import tqdm
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from paced_verl import fields
from paced_verl.pacing.protocol import IntArray
from paced_verl.run.measure import Counts
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
        self._sent: IntArray = np.empty(0, np.int64)

    def wait_for(self, which: IntArray, samples: int, step: int) -> Counts:
        """Sample prompts and count their correct responses.

        Two chunks are in flight, so that the servers stay busy while the slowest responses of one are finished.

        Args:
            which: Positions in the data set, (P,), each once.
            samples: Responses a prompt (K).
            step: The training step.

        Raises:
            RuntimeError: Not one response of the first chunks was scored.
        """
        assert self.under_way is None, "collect what was sent before"
        tally = _Tally(which)
        chunks = [which[start : start + self.chunk] for start in range(0, len(which), self.chunk)]
        waiting = [self._submit(part, samples, step) for part in chunks[:1]]
        with tqdm(total=len(which), desc="Pass rates", unit="prompt", disable=len(chunks) < 2) as progress:
            for following in [*chunks[1:], *[None] * bool(waiting)]:
                if following is not None:
                    waiting.append(self._submit(following, samples, step))
                size = waiting.pop(0)
                self._collect(tally, size, step)
                progress.update(size)
        return tally.counts

    def send(self, which: IntArray, samples: int, step: int) -> None:
        """Have prompts sampled while something else goes on; :meth:`collect` waits for them.

        Args:
            which: Positions in the data set, (P,), each once.
            samples: Responses a prompt (K).
            step: The training step.
        """
        assert self.under_way is None, "collect what was sent before"
        self._sent, self.under_way = which, step
        self._submit(which, samples, step)

    def collect(self) -> Counts:
        """What became of the prompts that were sent.

        Raises:
            RuntimeError: Not one response was scored.
        """
        assert self.under_way is not None, "nothing was sent"
        tally, step, self.under_way = _Tally(self._sent), self.under_way, None
        self._collect(tally, len(self._sent), step)
        return tally.counts

    def _collect(self, tally: _Tally, size: int, step: int) -> None:
        batch, _ = self.replay_buffer.sample(global_steps=step, partition_id=PARTITION, batch_size=size)
        tally.add(batch, self.threshold)

    def _submit(self, chunk: IntArray, samples: int, step: int) -> int:
        """Dispatch a chunk as validation rows, as ``PPOTrainer._validate`` does; returns its number of prompts."""
        rows = collate_fn([self.prompts[i] for i in chunk.tolist()])
        rows["uid"] = np.array([str(uuid.uuid4()) for _ in chunk], dtype=object)
        batch = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(batch, "global_steps", step)
        tu.assign_non_tensor_data(batch, "validate", True)
        tu.assign_non_tensor_stack(batch, "__rollout_n__", [samples] * len(batch))
        tu.assign_non_tensor_stack(batch, fields.TEMPERATURE, [self.temperature] * len(batch))
        tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in range(len(batch))]
        tq.kv_batch_put(keys=list(batch["uid"]), partition_id=PARTITION, tags=tags)
        self.manager.generate_sequences(batch)
        return len(batch)


class _Tally:
    """Counts rollouts, chunk by chunk."""

    def __init__(self, which: IntArray):
        self.place = {prompt: i for i, prompt in enumerate(which.tolist())}
        zeros = (np.zeros(len(which), np.int64) for _ in range(3))
        self.counts = Counts(which, *zeros)

    def add(self, batch: KVBatchMeta, threshold: float) -> None:
        """Count a chunk's rollouts and clear its rows."""
        both = sessions(batch.keys)
        if not both.last.any():
            if not self.counts.samples.any():
                raise RuntimeError("Pass rates cannot be estimated: not one response of the first prompts was scored.")
            return
        names = [fields.PROMPT, "rm_scores", "extra_fields"]
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=PARTITION, select_fields=names)
        place = np.array([self.place[int(getattr(prompt, "data", prompt))] for prompt in rows[fields.PROMPT]])
        # Scores are one a token. Every output of a session was generated; the last one has its reward.
        np.add.at(self.counts.tokens, place, [len(score) for score in rows["rm_scores"].unbind()])
        np.add.at(self.counts.samples, place[both.last], 1)
        np.add.at(self.counts.successes, place[both.last], correct_rows(rows, threshold)[both.last])
        tq.kv_clear(keys=batch.keys, partition_id=PARTITION)
