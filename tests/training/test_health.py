"""The watch on a run's engines, with real Ray actors that die, freeze and work for long."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from paced_verl.training import health
from paced_verl.training.health import EngineWatch, Silence

LONG = 60.0  # seconds; nothing here takes so long unless it is broken


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POLL_SECONDS", 0.1), ("PING_SECONDS", 0.3), ("MISSES", 4)):
        monkeypatch.setattr(health, name, value)


@ray.remote(num_cpus=0)
class Worker:
    """As a trainer worker: whoever asks while it works waits."""

    def process(self) -> int:
        return os.getpid()

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


@ray.remote(num_cpus=0)
class Server:
    """As a vLLM server: generates in its event loop, and serves HTTP there."""

    async def process(self) -> int:
        return os.getpid()

    async def serve(self) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        self.http = await asyncio.start_server(answer, "127.0.0.1", 0)
        return f"127.0.0.1:{self.http.sockets[0].getsockname()[1]}"

    async def generate(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def interrupted_by(watch: EngineWatch, seconds: float, freeze: Any = None) -> str | None:
    """What the watch interrupts the main thread for within so many seconds, a while after an actor has frozen."""
    process = None
    try:
        with watch:
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                time.sleep(0.05)  # a longer sleep would not be interrupted
                if freeze is not None and process is None and time.monotonic() > began + 0.5:
                    process = ray.get(freeze.process.remote())
                    os.kill(process, signal.SIGSTOP)
    except KeyboardInterrupt:
        return watch.cause
    finally:
        if process is not None:
            os.kill(process, signal.SIGKILL)
    return None


def test_a_dead_worker_is_named() -> None:
    alive, dead = Worker.remote(), Worker.remote()
    os.kill(ray.get(dead.process.remote()), signal.SIGKILL)
    cause = interrupted_by(EngineWatch({"Worker 0": alive, "Worker 1": dead}), LONG)
    assert cause is not None
    assert cause.startswith("Worker 1 died: ")
    assert EngineWatch({"Worker 0": alive}).find_dead() is None
    assert (EngineWatch({"Worker 1": dead}).find_dead() or "").startswith("Worker 1 died: ")


def test_a_process_that_ignores_interrupts_is_interrupted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a shell script has started with ``&``. Other interrupts it ignores as before, also in the block."""
    monkeypatch.setattr(health, "GRACE_SECONDS", 10 * LONG)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        alive, dead = Worker.remote(), Worker.remote()
        ray.get(alive.process.remote())
        with EngineWatch({"Worker 0": alive}):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        os.kill(ray.get(dead.process.remote()), signal.SIGKILL)
        cause = interrupted_by(EngineWatch({"Worker 1": dead}), LONG)
        assert (cause or "").startswith("Worker 1 died: ")
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_whoever_is_interrupted_before_the_block_begins_is_not_killed_afterwards() -> None:
    dead = Worker.remote()
    os.kill(ray.get(dead.process.remote()), signal.SIGKILL)
    watch = EngineWatch({"Worker 0": dead})
    start = watch._thread.start

    def start_slowly() -> None:
        start()
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            time.sleep(0.05)

    watch._thread.start = start_slowly  # type: ignore[method-assign]
    assert (interrupted_by(watch, LONG) or "").startswith("Worker 0 died: ")
    watch._thread.join(health.GRACE_SECONDS / 2)
    assert not watch._thread.is_alive(), "it still waits for an answer, and ends the process without one"


def test_a_frozen_server_is_named_by_its_silence_over_http() -> None:
    server = Server.remote()
    address = ray.get(server.serve.remote())
    cause = interrupted_by(EngineWatch({"Server 0": server}, {"Server 0": address}), LONG, freeze=server)
    assert cause is not None
    assert cause.startswith("Server 0 froze: it has not answered 4 times")


def test_a_frozen_actor_that_must_answer_is_named() -> None:
    loop, other = Server.remote(), Server.remote()
    ray.get([loop.process.remote(), other.process.remote()])
    cause = interrupted_by(EngineWatch({"Loop 0": other, "Loop 1": loop}, prompt=["Loop 0", "Loop 1"]), LONG, loop)
    assert cause is not None
    assert cause.startswith("Loop 1 froze: ")


def test_a_worker_in_a_long_step_and_a_server_that_generates_are_left_alone() -> None:
    worker, server = Worker.remote(), Server.options(max_concurrency=2).remote()
    address = ray.get(server.serve.remote())
    worker.work.remote(2.0)
    for _ in range(6):
        server.generate.remote(1.0)  # Ray's question waits behind these
    watch = EngineWatch({"Worker 0": worker, "Server 0": server}, {"Server 0": address})
    assert interrupted_by(watch, 1.8) is None


def test_silence_counts_from_the_last_answer_and_only_after_one() -> None:
    silence = Silence(misses=3)
    assert [silence.note("unreachable", False) for _ in range(9)] == [None] * 9, "a firewall is no frozen server"
    said = [silence.note("server", answered) for answered in (True, False, False, True, False, False, False)]
    assert said[:-1] == [None] * 6
    assert said[-1] == "server froze: it has not answered 3 times in a row"
