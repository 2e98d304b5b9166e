"""A forked Python is the Python that it stands for, and is forked where it can be."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paced_verl.cpu import forked_python

STUB = [sys.executable, "-IS", forked_python.__file__]
SELF = """
import json, os, sys
told = dict(arguments=sys.argv, folder=os.getcwd(), path=sys.path[0], name=__name__, added=os.environ.get("ADDED"),
            given=sys.stdin.read(), group=os.getpgrp(), parent=os.getppid(), preloaded="colorsys" in sys.modules)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def raylet() -> Iterator[subprocess.Popen]:
    """What the server's life hangs on."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()


@pytest.fixture(scope="module")
def environment(raylet: subprocess.Popen) -> dict[str, str]:
    return os.environ | {"RAY_RAYLET_PID": str(raylet.pid), "RAY_JOB_ID": "01000000"}


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> psutil.Process:
    """A server that has imported less than one of a run, listening where its processes look for it."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"\0paced-verl-{environment['RAY_RAYLET_PID']}-01000000")
    listening.listen(64)
    code = "import sys; from paced_verl.cpu import forkserver as it; it.PRELOADED = ('colorsys', 'ray._raylet')"
    command = [sys.executable, "-c", f"{code}; it.main({listening.fileno()})"]
    process = subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])
    listening.close()
    return psutil.Process(process.pid)


def run(command: list[str], environment: dict[str, str], **settings: object) -> subprocess.CompletedProcess:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **settings)  # type: ignore[call-overload]
    return done


@pytest.mark.parametrize("arguments", [["script.py", "a", "--b"], ["-u", "script.py"], ["-B", "-c", SELF, "a"]])
def test_it_is_what_python_is_but_the_servers_child(
    server: psutil.Process, environment: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "script.py").write_text(SELF)
    added = environment | {"ADDED": "for this one"}
    forked, plain = (
        run([*python, *arguments], added, cwd=tmp_path, input="a line") for python in (STUB, [sys.executable])
    )
    told, expected = json.loads(forked.stdout), json.loads(plain.stdout)
    assert [told.pop("preloaded"), expected.pop("preloaded")] == [True, False]
    assert [told.pop("parent"), expected.pop("parent")] == [server.pid, os.getpid()]
    assert told == expected


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise ValueError('because')", "import os; os.abort()"])
def test_it_ends_as_python_ends(server: psutil.Process, environment: dict[str, str], code: str) -> None:
    forked, plain = (run([*python, "-c", code], environment) for python in (STUB, [sys.executable]))
    assert forked.returncode == plain.returncode
    assert forked.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    "names_itself", ["from setproctitle import setproctitle", "from ray._raylet import setproctitle"]
)
def test_it_can_name_itself_as_vllm_and_ray_do(
    server: psutil.Process, environment: dict[str, str], names_itself: str
) -> None:
    code = f"{names_itself}; setproctitle('VLLM::EngineCore'); print(open('/proc/self/cmdline').read())"
    done = run([*STUB, "-c", code], environment | {"RANK": "0"})
    assert done.stdout.rstrip("\0\n ") == "VLLM::EngineCore", done.stderr


def test_what_is_random_is_not_shared(server: psutil.Process, environment: dict[str, str]) -> None:
    code = """
import random, numpy, uuid, ray
print(random.random(), numpy.random.random(), uuid.uuid4(), ray._raylet.ObjectRef.from_random().hex())
"""
    first, second = (run([*STUB, "-c", code], environment).stdout.split() for _ in range(2))
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)


def test_open_files_come_along_under_their_numbers(server: psutil.Process, environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    run([*STUB, "-c", f"import os; os.write({writing}, b'through')"], environment, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as file:
        assert file.read() == "through", "and its end is known: the server keeps none open"


def test_processes_that_it_spawns_are_forked_as_well(
    server: psutil.Process, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("""
import multiprocessing, os, sys
def tell(queue, number): queue.put((number, os.getppid(), "colorsys" in sys.modules))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=tell, args=(queue, 7))
    process.start()
    print(*queue.get(timeout=30))
    process.join()
    print(process.exitcode)
""")
    done = run([*STUB, str(tmp_path / "script.py")], environment)
    assert done.stdout.split() == ["7", str(server.pid), "True", "0"], done.stderr


def started(process: subprocess.Popen) -> psutil.Process:
    """The forked process that a stub stands for, once it runs."""
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def wait_for(moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_it_ends_the_forked_process(
    server: psutil.Process, environment: dict[str, str], sent: signal.Signals
) -> None:
    stub = subprocess.Popen([*STUB, "-c", SLEEPS], env=environment, stdout=subprocess.PIPE, text=True)
    forked = started(stub)
    stub.send_signal(sent)
    assert stub.wait(10) == -sent
    forked.wait(10)


def test_a_forked_process_that_is_killed_ends_what_stands_for_it(
    server: psutil.Process, environment: dict[str, str]
) -> None:
    stub = subprocess.Popen([*STUB, "-c", SLEEPS], env=environment, stdout=subprocess.PIPE, text=True)
    started(stub).kill()
    assert stub.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("first", ["the forked process", "what stands for it"])
def test_the_server_outlives_processes_that_die_together_with_what_stands_for_them(
    server: psutil.Process, environment: dict[str, str], first: str
) -> None:
    """As Ray ends a worker, with its whole process group: the server hears of both at once, in either order."""
    stub = subprocess.Popen([*STUB, "-c", SLEEPS], env=environment, stdout=subprocess.PIPE, text=True)
    forked = started(stub)
    server.suspend()
    both = [forked, psutil.Process(stub.pid)]
    for killed in both if first == "the forked process" else reversed(both):
        killed.kill()
        wait_for(lambda killed=killed: killed.status() == psutil.STATUS_ZOMBIE)
    server.resume()
    assert stub.wait(10) == -signal.SIGKILL
    forked.wait(10)
    assert json.loads(run([*STUB, "-c", SELF], environment, input="").stdout)["parent"] == server.pid


@pytest.mark.parametrize(
    ("arguments", "other"), [(["-c", SELF], {"PATH": "/elsewhere"}), (["-Wignore", "-c", SELF], {})]
)
def test_another_environment_or_an_option_of_pythons_gets_an_ordinary_python(
    server: psutil.Process, environment: dict[str, str], arguments: list[str], other: dict[str, str]
) -> None:
    done = run([*STUB, *arguments], environment | other, input="")
    assert json.loads(done.stdout)["preloaded"] is False


def test_where_ray_has_not_started_it_it_is_an_ordinary_python(environment: dict[str, str]) -> None:
    without = {name: value for name, value in environment.items() if name != "RAY_JOB_ID"}
    assert json.loads(run([*STUB, "-c", SELF], without, input="").stdout)["preloaded"] is False


def test_a_thread_that_an_import_started_is_found() -> None:
    code = "import threading, time; from paced_verl.cpu.forkserver import threads; print(threads());"
    code += "threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); print(len(threads()))"
    assert run([sys.executable, "-c", code], dict(os.environ)).stdout.split() == ["[]", "1"]


def test_the_server_ends_with_ray(server: psutil.Process, raylet: subprocess.Popen) -> None:
    assert server.is_running()
    raylet.kill()
    wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE)
