"""Ends a run when one of its engines dies or freezes. verl waits for ever for its weights or answers."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import Any

import ray

POLL_SECONDS = 5.0
GRACE_SECONDS = 20.0
PING_SECONDS = 10.0
DEAF = (signal.SIG_IGN, signal.SIG_DFL)  # a process that does this with SIGINT cannot be interrupted
MISSES = 20  # an event loop that answers nobody for minutes does not generate either

_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # servers are not behind the proxy


class Silence:
    """Tells who has frozen from who cannot be reached from here, and never could.

    Args:
        misses: So many times in a row someone who has answered before may not answer.
    """

    def __init__(self, misses: int):
        self.misses = misses
        self._missed: dict[str, int] = {}

    def note(self, name: str, answered: bool) -> str | None:
        """Note whether someone has answered; returns what is wrong with them, if anything is."""
        if answered:
            self._missed[name] = 0
        elif name in self._missed:
            self._missed[name] += 1
            if self._missed[name] >= self.misses:
                return f"{name} froze: it has not answered {self.misses} times in a row"
        return None


class EngineWatch:
    """Watches Ray actors while a run is in the ``with`` block, and interrupts the main thread when one is lost.

    For a dead actor Ray answers at once, with an error (for one of a dead node when its heartbeat has been missing for
    about a minute). Silence says less: a trainer worker answers after its step, a server after the requests before. So
    servers are asked over HTTP besides, where they answer within seconds whatever they generate. Who must answer and
    has not ``MISSES`` times in a row, in a few minutes, is lost, too.

    Args:
        actors: The actors to watch, by a name for the message.
        servers: Those that serve HTTP: host:port by the same names.
        prompt: Names of those whose event loop never works for long, so that Ray's question is enough.

    What interrupts is Python's own SIGINT. A process that a shell script has started in the background ignores it, and
    so do its children: in the block it is heard, but only where the watch has a cause. The block is the main thread's.

    Attributes:
        cause: What died and why, or ``None``. The interrupted main thread reads it to say so.
    """

    def __init__(
        self, actors: Mapping[str, Any], servers: Mapping[str, str] | None = None, prompt: Collection[str] = ()
    ):
        self.actors, self.servers, self.prompt = dict(actors), dict(servers or {}), frozenset(prompt)
        self.cause: str | None = None
        self._done, self._leaving = threading.Event(), threading.Lock()
        self._silence = Silence(MISSES)
        self._thread = threading.Thread(target=self._watch, name="paced-engine-watch", daemon=True)

    def __enter__(self) -> EngineWatch:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before in DEAF:
            signal.signal(signal.SIGINT, self._hear)
        try:
            self._thread.start()
        except BaseException:  # interrupted before the block begins: there is no __exit__ then
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._leaving:  # whoever is interrupted is still in the block
            self._done.set()
        if self._before in DEAF:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.cause is not None:
            raise KeyboardInterrupt

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
        with ThreadPoolExecutor(max(1, len(self.servers))) as pool:
            while not self._done.is_set():
                references, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
                names = [asked.pop(reference) for reference in references]
                lost = [_death(name, reference) for name, reference in zip(names, references, strict=True)]
                asked |= {self.actors[name].__ray_ready__.remote(): name for name in names}
                answers = {name: name in names for name in self.prompt}
                answers |= zip(self.servers, pool.map(_answers, self.servers.values()), strict=True)
                lost += [self._silence.note(name, said) for name, said in answers.items()]
                if cause := next(filter(None, lost), None):
                    self._interrupt(cause)
                    return
                self._done.wait(POLL_SECONDS)

    def _interrupt(self, cause: str) -> None:
        with self._leaving:
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


def _answers(address: str) -> bool:
    """Whether a server says anything at all over HTTP; what it says of its engine, its requests say, too."""
    try:
        _HTTP.open(f"http://{address}/health", timeout=PING_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
