"""A run whose engine dies ends with the cause within a minute; verl alone waits for ever."""

from __future__ import annotations

import re
import time

import psutil
import pytest

from tests.e2e.harness import Workplace, descendants


def servers() -> list[psutil.Process]:
    """The run's vLLM servers, oldest first."""
    found = [process for process in descendants() if "vLLMHttpServer" in " ".join(process.cmdline())]
    return sorted(found, key=lambda process: process.create_time())


@pytest.mark.parametrize("engine", ["Teacher", "Student"])
def test_a_dead_engine_ends_the_run_with_its_cause(workplace: Workplace, engine: str) -> None:
    killed_at: list[float] = []
    said_at: list[float] = []

    def kill_server(line: str) -> None:
        if re.search(r"step:1 - ", line) and not killed_at:
            teacher, student = servers()  # verl starts the teacher's first
            (teacher if engine == "Teacher" else student).kill()
            killed_at.append(time.monotonic())
        if re.search(rf"The run ended at step \d+: {engine} vLLM server \S+ died", line):
            said_at.append(time.monotonic())

    launched = workplace.launch(on_line=kill_server, steps=50)
    assert killed_at, launched.tail()
    assert launched.code != 0
    assert said_at, launched.tail()
    assert said_at[0] - killed_at[0] < 60, "asked every 5 to 10 s; the rest is the driver's farewell"
