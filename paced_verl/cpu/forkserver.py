"""One process that has imported everything, for the processes of a run to be forked off.

A run on a CPU machine is about fifteen processes, started one after the other, and each imports torch, transformers,
vLLM and verl: 9 s on a core, 130 of the 155 s of processor time that a small run takes. Ray lets a job name the Python
of its workers (``runtime_env.py_executable``); here that is a script which asks this server for a fork of itself
(``forked_python``). What is shared once is also memory that each of them does not take.

Only for machines without an accelerator, and where one machine is the whole cluster. Started by the first of a job's
workers, so that everything is imported in the environment of a worker: Ray's native code keeps the job's number from
its import on. It ends with Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import itertools
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import wrapt

from paced_verl.cpu import forked_python

PRELOADED = (
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "vllm.v1.worker.cpu_worker",
    "ray._private.workers.default_worker",
    "paced_verl.training.rollout",
    "paced_verl.training.worker",
)
BEYOND = 512  # a file number that no job asks for
SHELL = {"_", "OLDPWD", "PWD", "SHLVL"}  # differ with the folder and the shell that a process is started from
HARMLESS_THREADS = {"jemalloc_bg_thd"}  # Arrow's allocator, which starts its own again after a fork


@dataclass(frozen=True)
class Job:
    """What a forked process shall be: as on the command line of a Python."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    group: int
    """Process group: Ray ends a worker together with its group."""
    files: dict[int, int]
    """Number that the job knows an open file by → number here."""

    @staticmethod
    def receive(client: socket.socket) -> Job | None:
        """Read a request of ``forked_python``; None if the client is gone."""
        message, here, _, _ = socket.recv_fds(client, forked_python.MESSAGE, 64)
        if not message:
            return None
        wanted = json.loads(message)
        return Job(**wanted | {"files": dict(zip(wanted["files"], here, strict=True))})

    @property
    def script(self) -> list[str]:
        """The arguments from the script, or ``-c``, on; empty where there are options that a fork cannot take."""
        rest = list(itertools.dropwhile({"-u", "-B"}.__contains__, self.arguments))
        return rest if rest and (rest[0] == "-c" or not rest[0].startswith("-")) else []

    def why_not(self, ours: Mapping[str, str]) -> str:
        """Why this cannot be a fork, empty if it can: options of Python's, or another environment while importing.

        What the job has besides, it has for what it does; vLLM's preloaded allocator is one of these, and is not had.

        Args:
            ours: The environment that everything was imported in.
        """
        if not self.script:
            return f"arguments {self.arguments}"
        return ", ".join(sorted({name for name in ours if self.environment.get(name) != ours[name]} - SHELL))

    def forget(self) -> None:
        """Close the open files in the server."""
        for here in self.files.values():
            os.close(here)

    def enter(self, set_by_imports: Mapping[str, str]) -> None:
        """Make this process, just forked, the job's."""
        lifted = {wanted: fcntl.fcntl(here, fcntl.F_DUPFD, BEYOND) for wanted, here in self.files.items()}
        self.forget()
        for wanted, number in lifted.items():
            os.dup2(number, wanted)
            os.close(number)
        environment = {**self.environment, **set_by_imports}
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        # What stays is not set again: a process that names itself looks for the room to do so where its environment is.
        os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
        os.chdir(self.folder)
        try:
            os.setpgid(0, self.group)
        except PermissionError:  # of another session
            os.setpgid(0, 0)
        # Else all would draw the same. Python's own generator sees to itself, torch's seed is fixed.
        np.random.seed()  # noqa: NPY002  (it is the global one)

    def run(self) -> None:
        """What ``python ARGUMENTS…`` does once it is up."""
        what, *rest = self.script
        if what == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), vars(main))
        else:
            sys.argv, sys.path[0] = self.script, os.path.dirname(os.path.abspath(what))
            runpy.run_path(what, run_name="__main__")


class Server:
    """Forks a process for each client, and tells the client its id and, once it has ended, its status.

    Args:
        listening: Where clients connect.
        alive: An open file that is readable once the server shall end.
        environment: The one that everything was imported in.
    """

    def __init__(self, listening: socket.socket, alive: int, environment: Mapping[str, str]):
        self._environment = environment
        self._set_by_imports = {name: value for name, value in os.environ.items() if environment.get(name) != value}
        self._selector = selectors.DefaultSelector()
        self._listening, self._alive = listening, alive
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(alive, selectors.EVENT_READ)
        self._running: dict[socket.socket, int] = {}
        self._ended: dict[int, socket.socket] = {}  # file that is readable once a process has ended → its client

    def serve(self) -> Job | None:
        """Serve as long as it shall, then return None; and in every process that is forked, return its job."""
        while True:
            # One at a time: what is done for one may close the file that the next is of.
            key, _ = self._selector.select()[0]
            file = key.fileobj
            if file == self._alive:
                return None
            if file is self._listening:
                self._accept()
            elif isinstance(file, int):
                self._report(file)
            elif file in self._running:
                self._end(cast(socket.socket, file))
            elif job := self._fork(cast(socket.socket, file)):
                return job

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        if forked_python.is_ours(client):
            self._selector.register(client, selectors.EVENT_READ)
        else:
            client.close()

    def _fork(self, client: socket.socket) -> Job | None:
        job = Job.receive(client)
        if job is None:
            self._drop(client)
            return None
        if why := job.why_not(self._environment):
            print(f"paced-verl: a process imports everything by itself because of {why}", file=sys.stderr, flush=True)
            job.forget()
            self._drop(client)
            return None
        pid = os.fork()
        if pid == 0:
            self._close()
            job.enter(self._set_by_imports)
            return job
        job.forget()
        ended = os.pidfd_open(pid)
        self._running[client], self._ended[ended] = pid, client
        self._selector.register(ended, selectors.EVENT_READ)
        with contextlib.suppress(OSError):  # killed meanwhile, which is heard of next
            client.send(str(pid).encode())
        return None

    def _report(self, ended: int) -> None:
        client = self._ended.pop(ended)
        _, status = os.waitpid(self._running.pop(client), 0)
        self._selector.unregister(ended)
        os.close(ended)
        with contextlib.suppress(OSError):  # killed together with its process
            client.send(str(status).encode())
        self._drop(client)

    def _end(self, client: socket.socket) -> None:
        """A client that has a process says nothing more: it was killed."""
        self._selector.unregister(client)
        os.kill(self._running[client], signal.SIGKILL)

    def _drop(self, client: socket.socket) -> None:
        if client in self._selector.get_map():
            self._selector.unregister(client)
        client.close()

    def _close(self) -> None:
        for file in [key.fileobj for key in self._selector.get_map().values()]:
            os.close(file if isinstance(file, int) else cast(socket.socket, file).detach())
        self._selector.close()


def threads() -> list[str]:
    """Names of the threads of this process that a fork would lose, beside the main one."""
    tasks = Path("/proc/self/task")
    others = [task for task in tasks.iterdir() if task.name != str(os.getpid())]
    return sorted({(task / "comm").read_text().strip() for task in others} - HARMLESS_THREADS)


def preload() -> None:
    """Import what a run's processes need.

    Raises:
        RuntimeError: An import has started a thread.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    if lost := threads():
        raise RuntimeError(f"imports have started threads, which a fork would lose: {lost}")
    gc.collect()
    gc.freeze()  # or the collector would write to, and so copy, what is shared


def fork_spawned() -> None:
    """Have multiprocessing's spawned processes forked off this server, too."""
    python = [sys.executable, "-IS", forked_python.__file__]

    def command(wrapped: Callable[..., list[str]], _: Any, args: tuple, kwargs: dict) -> list[str]:
        return [*python, *wrapped(*args, **kwargs)[1:]]

    wrapt.wrap_function_wrapper("multiprocessing.spawn", "get_command_line", command)


def main(listening: int) -> None:
    """Import, serve, and in a forked process run its job."""
    environment = dict(os.environ)
    raylet = os.pidfd_open(int(environment["RAY_RAYLET_PID"]))
    fork_spawned()
    preload()
    if job := Server(socket.socket(fileno=listening), raylet, environment).serve():
        job.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
