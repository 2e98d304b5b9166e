"""``python -IS forked_python.py ARGUMENTS…`` is ``python ARGUMENTS…``, but forked off one that has all imports.

Ray starts this as the Python of a job's workers (``runtime_env.py_executable``), multiprocessing as that of a spawned
process. The first of a job starts the server (``forkserver``). Each hands over what it was given (arguments,
environment, folder, process group, open files), stands for the forked process as long as that lives, passes signals on
and ends as it ends. Where the server declines or is gone it becomes an ordinary Python. Standard library only: it
starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys

MESSAGE = 200_000  # bytes that a request may have; a larger one gets an ordinary Python
SERVER = "paced_verl.cpu.forkserver"


def address() -> str:
    """Where the server of this job on this machine listens: a name that no file system knows and nobody need clear."""
    return f"\0paced-verl-{os.environ['RAY_RAYLET_PID']}-{os.environ['RAY_JOB_ID']}"


def is_ours(other: socket.socket) -> bool:
    """Whether a connection's other end is a process of this user: the address is open to all."""
    _, user, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())


def connect() -> socket.socket:
    """A connection to the server, which is started if there is none. It answers once it has imported everything.

    Raises:
        OSError: It cannot be had.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):  # there is a server
        listening.bind(address())
        listening.listen(64)
        listening.set_inheritable(True)
        command = [sys.executable, "-m", SERVER, str(listening.fileno())]
        os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)
    listening.close()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
    server.connect(address())
    if not is_ours(server):
        raise PermissionError("the server is another user's")
    return server


def open_files() -> list[int]:
    """This process's open files that a program started by it would have, too."""
    files = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if os.get_inheritable(int(name)):
                files.append(int(name))
    return sorted(files)


def request(server: socket.socket, arguments: list[str]) -> int | None:
    """Ask for a process; its id, or None where the server declines or is gone."""
    files = open_files()
    wanted = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgrp(),
        "files": files,
    }
    try:
        socket.send_fds(server, [json.dumps(wanted).encode()], files)
        answer = server.recv(64)
    except OSError:
        return None
    return int(answer) if answer else None


def stand_for(pid: int, server: socket.socket) -> int:
    """Wait for the process and end as it ends. The server ends it if this one is killed.

    Returns:
        Its exit code, if no signal ended it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    status = server.recv(64)
    code = os.waitstatus_to_exitcode(int(status)) if status else 1
    if code < 0:
        if -code in (signal.SIGINT, signal.SIGTERM):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def main(arguments: list[str]) -> int:
    pid = server = None
    with contextlib.suppress(OSError, KeyError):
        server = connect()
        pid = request(server, arguments)
    if server is None or pid is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    return stand_for(pid, server)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
