"""Where the teacher's loss points within a run: with the weights of a step, by the run's own servers.

The same measurement as ``paced-verl align``; its rollouts are no part of what trains, and its questions are the same at
every step.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager

from paced_verl.config import PacedConfig
from paced_verl.forcing import tables
from paced_verl.forcing.inputs import Inputs, resolve
from paced_verl.forcing.run import NothingToMeasureError
from paced_verl.teacher.servers import Servers, StudentServers, TeacherServers
from paced_verl.training.counting import Heard, count_tokens

PREFIX = "paced/alignment"


class Aligning:
    """Measures in a folder a step.

    Args:
        inputs: What.
        servers: Of the run.
        folder: Keeps a folder of tables a measurement, as ``paced-verl align --out`` does.
        say: Told how it goes.
    """

    def __init__(self, inputs: Inputs, servers: Servers, folder: Path, say: Callable[[str], None] = print):
        self.inputs, self.servers, self.folder, self.say = inputs, servers, folder, say

    def after(self, step: int) -> dict[str, float]:
        """Measure with the weights that the servers have; :func:`metrics_of`.

        What an earlier attempt has left of this step is measured anew: its weights were others.
        """
        started = time.monotonic()
        out = self.folder / f"step_{step}"
        if out.exists():
            shutil.rmtree(out)
        measurement = self.inputs.measurement(self.servers, out)
        self.say(f"[paced] alignment after step {step}, in {out}")
        try:
            nodes = asyncio.run(measurement.run(lambda line: self.say(f"[paced]     {line}")))
            metrics = metrics_of(tables.write(measurement, nodes, self.inputs.judge.tokenizer.decode))
        except NothingToMeasureError as nothing:  # a student that has mastered the questions ends no run
            self.say(f"[paced]     {nothing}")
            metrics = {f"{PREFIX}/nodes": 0.0}
        rollouts = float(len(measurement.entries))
        return metrics | {f"{PREFIX}/rollouts": rollouts, f"{PREFIX}/seconds": time.monotonic() - started}


def metrics_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What a run logs of a measurement's numbers, those that are known: each teacher's under each divergence.

    ``cosine`` with ``low`` and ``high`` is the aggregate and its 95 % interval; ``correct`` and ``wrong`` are that of
    nodes of correct and of failed responses.
    """
    found = {f"{PREFIX}/nodes": float(numbers["nodes"]["scored"])}
    for one in numbers["teachers"]:
        key = f"{PREFIX}/{one['teacher']}/{one['divergence']}"
        found |= {f"{key}/cosine": one["aggregate"]["value"]}
        found |= {f"{key}/{end}": one["aggregate"][end] for end in ("low", "high")}
        found[f"{key}/reliability"] = one["reliability"]
    for one in numbers["outcomes"]:
        key = f"{PREFIX}/{one['teacher']}/{one['divergence']}"
        found |= {f"{key}/{kind}": one[kind]["value"] for kind in ("correct", "wrong")}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def aligning(
    config: DictConfig, paced: PacedConfig, dataset: Any, clients: tuple[Any, Any], folder: Path, heard: Heard
) -> Aligning:
    """With the servers that a trainer has started.

    Args:
        config: verl's whole configuration, as the trainer has it.
        paced: Its ``paced`` block, parsed.
        dataset: verl's training data.
        clients: verl's of the student, and of the teachers by key; ``None``: there are no teacher servers.
        folder: For the tables.
        heard: Told of the tokens of every request.
    """
    inputs = resolve(config, paced, dataset)
    print(f"[paced] alignment every {paced.alignment.every_steps} steps:\n{inputs}", flush=True)
    student, teachers = clients
    for client in (student, *(teachers or {}).values()):
        count_tokens(client, heard)
    assert isinstance(paced.teacher.topk, int), "checks: servers do not send whole rows"
    teacher = TeacherServers(AsyncTeacherLLMServerManager(config, teachers)) if teachers is not None else None
    servers = Servers(StudentServers(student, paced.teacher.topk), teacher)
    return Aligning(inputs, servers, folder, lambda line: print(line, flush=True))
