"""Runs verl's real launcher in a process of its own, kills it where a test says so, and reads what it left."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from paced_verl.report.run import Run

RECORD = Path(__file__).resolve().parents[2] / "outputs" / "e2e" / "launches.jsonl"
TIMEOUT = 900  # seconds a launch may take; a run that hangs fails here


@dataclass(frozen=True)
class Launched:
    """A launch that has ended."""

    code: int
    log: str
    seconds: float

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


class Workplace:
    """A folder for one run: its checkpoints, its metrics (one file a launch), its rollouts."""

    def __init__(self, folder: Path, models: Path):
        self.folder, self.models = folder, models
        self.checkpoints = folder / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)

    def launch(
        self,
        *overrides: str,
        group: str = "two_stage",
        steps: int = 6,
        on_line: Callable[[str], None] | None = None,
        machine: str = "cpu",
        environment: dict[str, str] | None = None,
    ) -> Launched:
        """Run ``python -m verl.trainer.main_ppo +paced=GROUP`` to its end.

        Args:
            overrides: After the ones that make the run small.
            group: The ``paced`` group.
            steps: Length of the run.
            on_line: Called with every line of the log, e.g. to kill something at the right moment.
            machine: The ``machine`` group.
            environment: Variables beside this process's own.
        """
        number = len(list(self.folder.glob("metrics-*.jsonl")))
        variables = os.environ | {"VERL_FILE_LOGGER_PATH": str(self.folder / f"metrics-{number}.jsonl")}
        variables |= environment or {}
        command = [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            f"+paced={group}",
            *self.overrides(steps, machine),
            *overrides,
        ]
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        watchdog = threading.Timer(TIMEOUT, kill_all)
        watchdog.start()
        lines = []
        with (self.folder / f"run-{number}.log").open("w") as log:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                if on_line is not None:
                    on_line(line)
        code = process.wait()
        watchdog.cancel()
        kill_all()
        if code == 0 and "PYTEST_CURRENT_TEST" in os.environ:
            record(group, [*self.overrides(steps, machine), *overrides])
        return Launched(code, "".join(lines), time.monotonic() - started)

    def launch_and_kill(self, after_step: int, *overrides: str, **settings: Any) -> Launched:
        """The same, but SIGKILL every process as soon as a step is done: checkpoint written, metrics logged."""
        return self.launch_until(lambda: self.is_done(after_step), *overrides, **settings)

    def launch_until(self, moment: Callable[[], bool], *overrides: str, **settings: Any) -> Launched:
        """The same, but SIGKILL every process as soon as ``moment`` has come."""
        killed, ended = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                if moment():
                    killed.set()
                    kill_all()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        launched = self.launch(*overrides, **settings)
        ended.set()
        watcher.join()
        assert killed.is_set(), launched.tail()
        assert launched.code != 0
        return launched

    def is_done(self, step: int) -> bool:
        """Whether a step has left all that it leaves."""
        # The log on the terminal comes a second late, which is a whole step on a fast machine; these files do not.
        rollouts = self.folder / "rollouts" / f"{step}.jsonl"
        logged = any(f'"step":{step},' in file.read_text() for file in self.folder.glob("metrics-*.jsonl"))
        return logged and rollouts.exists() and rollouts.read_text().endswith("\n")

    def overrides(self, steps: int, machine: str = "cpu") -> list[str]:
        return [
            f"+machine={machine}",
            f"data.train_files={self.models}/data/train.parquet",
            f"data.val_files={self.models}/data/test.parquet",
            "data.train_batch_size=8",
            "data.max_prompt_length=64",
            "data.max_response_length=32",
            f"actor_rollout_ref.model.path={self.models}/student",
            f"distillation.teacher_models.teacher_model.model_path={self.models}/teacher",
            "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            "actor_rollout_ref.actor.optim.lr=1e-4",
            "actor_rollout_ref.rollout.n=2",
            "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
            "reward.custom_reward_function.name=compute_score",
            "paced.pass_rate.samples=4",
            "trainer.project_name=paced-e2e",
            "trainer.experiment_name=run",
            "trainer.logger=[console,file]",
            "trainer.val_before_train=False",
            "trainer.test_freq=-1",
            "trainer.save_freq=1",
            f"trainer.total_training_steps={steps}",
            f"trainer.default_local_dir={self.checkpoints}",
            f"trainer.rollout_data_dir={self.folder}/rollouts",
        ]

    def run(self) -> Run:
        """All launches' metrics and tables."""
        return Run.load(sorted(self.folder.glob("metrics-*.jsonl")), self.checkpoints)

    def row_of(self, prompt: str) -> int:
        """The row of the training file that a prompt, as verl logs it, is made of."""
        matching = [row for row, question in enumerate(self._questions) if prompt.endswith(question)]
        assert len(matching) == 1, prompt
        return matching[0]

    @functools.cached_property
    def _questions(self) -> list[str]:
        rows = pq.read_table(self.models / "data" / "train.parquet").to_pylist()
        return [row["prompt"][-1]["content"] for row in rows]

    def prompts_trained(self, step: int) -> list[int]:
        """Rows of the training file that a step's prompts are, once each, sorted."""
        return sorted({self.row_of(rollout["input"]) for rollout in self.rollouts(step)})

    def rollouts(self, step: int) -> list[dict]:
        """A step's rows as verl dumps them."""
        lines = (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def last_checkpoint(self) -> int:
        return int((self.checkpoints / "latest_checkpointed_iteration.txt").read_text())


def record(group: str, overrides: list[str]) -> None:
    """Note a launch that ran to its end: ``scripts/support.py`` makes docs/support.md of these."""
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0].split("[")[0]
    with RECORD.open("a") as file:
        file.write(json.dumps({"test": test, "group": group, "overrides": overrides}) + "\n")


def descendants() -> list[psutil.Process]:
    """Every process that this one has started: launchers, Ray's daemons and workers, vLLM's engines."""
    return psutil.Process().children(recursive=True)


def kill_all() -> None:
    """SIGKILL them all at once, as a machine that fails would."""
    victims = descendants()
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    # Not psutil.wait_procs: it would collect the launcher's exit code before its parent does.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_alive(victim) for victim in victims):
        time.sleep(0.2)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
