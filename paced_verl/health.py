"""Ends a run when one of its engines dies. verl waits for ever for a dead server's weights or answers."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ray

POLL_SECONDS = 5.0
GRACE_SECONDS = 20.0


class EngineWatch:
    """Watches Ray actors while a run is in the ``with`` block, and interrupts the main thread when one dies.

    Args:
        actors: The actors to watch, by a name for the message.

    Attributes:
        cause: What died and why, or ``None``. The interrupted main thread reads it to say so.
    """

    def __init__(self, actors: Mapping[str, Any]):
        self.actors = dict(actors)
        self.cause: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="paced-engine-watch", daemon=True)

    def __enter__(self) -> EngineWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def find_dead(self) -> str | None:
        """What died and why: already seen, or found by asking everybody now."""
        if self.cause is None:
            asked = {actor.__ray_ready__.remote(): name for name, actor in self.actors.items()}
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            self.cause = next((death for ref in answered if (death := _death(asked[ref], ref))), None)
        return self.cause

    def _watch(self) -> None:
        # One question a time and actor: a busy worker answers when it is idle, a dead one at once.
        asked = {actor.__ray_ready__.remote(): name for name, actor in self.actors.items()}
        while not self._done.is_set():
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            for reference in answered:
                name = asked.pop(reference)
                if death := _death(name, reference):
                    self._interrupt(death)
                    return
                asked[self.actors[name].__ray_ready__.remote()] = name
            self._done.wait(POLL_SECONDS)

    def _interrupt(self, cause: str) -> None:
        if self._done.is_set():
            return
        self.cause = cause
        print(f"[paced] {cause}\n[paced] ending the run.", file=sys.stderr, flush=True)
        _thread.interrupt_main()
        if not self._done.wait(GRACE_SECONDS):
            print("[paced] the main thread does not answer: leaving without it.", file=sys.stderr, flush=True)
            os._exit(1)


def _death(name: str, answer: ray.ObjectRef) -> str | None:
    """Why the actor that should have answered did not."""
    try:
        ray.get(answer)
    except ray.exceptions.RayError as error:
        return f"{name} died: {' '.join(str(error).split())}"
    return None
