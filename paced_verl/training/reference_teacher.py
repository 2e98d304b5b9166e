"""The driver's side of a teacher in the trainer's workers (:mod:`paced_verl.teacher.engine`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfer_queue import KVBatchMeta

from paced_verl.config import TeacherConfig


class ReferenceTeacherDriver:
    """Loads, asks, moves and saves the teacher that every trainer worker has a shard of.

    Args:
        workers: verl's worker group, of :class:`paced_verl.training.worker.PacedWorker`.
        settings: ``paced.teacher``.
        path: The teacher's model.
    """

    def __init__(self, workers: Any, settings: TeacherConfig, path: str):
        self.workers, self.settings = workers, settings
        workers.init_teacher(path, settings.topk)

    @property
    def moves(self) -> bool:
        """Whether its weights change, so that a checkpoint must keep them."""
        return self.settings.update != "frozen"

    def ask(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Have the teacher score a batch; its answer is in fields of the rows."""
        answer: KVBatchMeta = self.workers.compute_teacher(batch)
        if batch.fields is not None:
            batch.fields = sorted({*batch.fields, *(answer.fields or [])})
        return batch

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student, where and when ``update`` says so."""
        if self.settings.update == "ema":
            self.workers.update_teacher(self.settings.ema_decay)
        elif self.settings.update == "every" and step % (self.settings.every_steps or 1) == 0:
            print(f"[paced] after step {step} the teacher takes the student's weights", flush=True)
            self.workers.update_teacher(0.0)

    def save(self, folder: Path) -> None:
        """Write the weights of a teacher that moves."""
        if self.moves:
            self.workers.save_teacher(str(folder))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        if self.moves:
            self.workers.load_teacher(str(folder))
