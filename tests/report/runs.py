"""Run directories as runs leave them, through the product's own writers, with numbers that are made up."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from paced_verl.fingerprint import fingerprint, prompt_hash, spread
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.schedule import Schedule
from paced_verl.run.record import record_end, write_record
from paced_verl.targets.store import Target, TargetStore

HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script> {{ 7*7 }} & "quotes"'
STAGES = [{"divergence": "forward_kl", "responses": "teacher"}, {"divergence": "reverse_kl", "responses": "student"}]
PROBLEMS = 200
SAMPLES = 8


class Workshop:
    """Makes runs under a folder.

    Args:
        folder: For data and runs.
        prompts: Rows of the training file.
    """

    def __init__(self, folder: Path, prompts: int = 60, seed: int = 0):
        self.folder, self.prompts = folder, prompts
        self.rng = np.random.default_rng(seed)
        self.texts = [f"Reverse the word number {i}." for i in range(prompts)]
        self.texts[0] = HOSTILE
        self.messages = [[{"role": "user", "content": text}] for text in self.texts]
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"prompt": self.messages}), folder / "train.parquet")
        pq.write_table(pa.table({"data_source": ["words"] * PROBLEMS}), folder / "test.parquet")
        self.ability = self.rng.normal(size=prompts)

    def config(self, name: str, **changes: Any) -> Any:
        config = OmegaConf.create(
            {
                "trainer": {
                    "logger": ["console", "file"],
                    "project_name": "p",
                    "experiment_name": name,
                    "default_local_dir": str(self.folder / name),
                },
                "data": {
                    "train_files": str(self.folder / "train.parquet"),
                    "val_files": str(self.folder / "test.parquet"),
                    "train_batch_size": 32,
                    "train_max_samples": -1,
                    "prompt_key": "prompt",
                },
                "actor_rollout_ref": {
                    "model": {"path": "Qwen/Qwen3-1.7B"},
                    "actor": {"grad_clip": 1.0, "optim": {"lr": 1e-5}},
                    "rollout": {"n": 2},
                },
                "paced": {
                    "weight": {"kernel": "beta", "alpha": 1.0, "beta": 1.0, "estimate": "empirical", "prior": None},
                    "pass_rate": {"samples": SAMPLES, "refresh": "stage"},
                    "sampler": {"power": 0.0, "seed": 0},
                },
            }
        )
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        return config

    def begin(self, name: str, total: int, after: int = 0, metrics: str = "metrics-0.jsonl", **changes: Any) -> Path:
        """Write the record of an attempt; returns the run's folder."""
        folder, config = self.folder / name, self.config(name, **changes)
        schedule = Schedule.from_ends([0.5, 1.0], STAGES, total)
        named = fingerprint(self.messages[place] for place in spread(range(self.prompts)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VERL_FILE_LOGGER_PATH", str(folder / metrics))
            write_record(folder / "paced", config, schedule, self.prompts, named, after)
        return folder

    def train(
        self, folder: Path, steps: Sequence[int], total: int, gain: float = 0.25, metrics: str = "metrics-0.jsonl"
    ) -> None:
        """Write the metrics of some steps, validations at every fifth of the run, and the one before it at step 0."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / metrics).open("ab") as file:
            for step in steps:
                values = {} if step == 0 else self._values(step, total)
                if step % max(1, total // 5) == 0:
                    values |= self._validation(0.45 + gain * (1 - np.exp(-3 * step / total)))
                file.write(json.dumps({"step": step, "data": values}).encode() + b"\n")

    def _validation(self, mean: float) -> dict[str, float]:
        return {
            "val-core/words/acc/mean@4": mean,
            "val-aux/words/acc/std@4": 0.2,
            "val-core/words/acc/best@4/mean": 0.9,
        }

    def _values(self, step: int, total: int) -> dict[str, float]:
        done, second, noise = step / total, step > total // 2, self.rng.normal(1, 0.04)
        estimate = 1.0 if step in (1, total // 2 + 1) else 0.0
        return {
            "paced/stage": 2.0 if second else 1.0,
            "paced/divergence/value": noise * (0.5 if second else 0.9) * np.exp(-2 * done),
            "paced/divergence/forward_kl": noise * 0.9 * np.exp(-2 * done),
            "paced/divergence/reverse_kl": noise * 1.4 * np.exp(-2 * done),
            "paced/divergence/tail_mass": 0.05 * noise,
            "paced/weight/ess": 0.6 - 0.1 * done,
            "paced/weight/zero_share": 0.3 + 0.3 * done,
            "paced/weight/max": 3.0,
            "paced/pass_rate/low": 0.4 * (1 - done),
            "paced/pass_rate/frontier": 0.4,
            "paced/pass_rate/high": 0.2 + 0.4 * done,
            "paced/sampler/staleness": float(step % (total // 2 + 1)),
            "paced/sampler/entropy": 0.95,
            "paced/teacher/tokens": 9000.0,
            "paced/teacher/tokens_saved": 2500.0,
            "paced/teacher/seconds": 3.0,
            "paced/teacher/seconds_saved": 0.8,
            "paced/teacher/skipped_rows": 12.0,
            "paced/rollout/failed": 0.0,
            "paced/tokens/student/prompt": 3000.0 if second else 0.0,
            "paced/tokens/student/generated": 5000.0 if second else 0.0,
            "paced/tokens/estimate/prompt": estimate * 40_000.0,
            "paced/tokens/estimate/generated": estimate * 90_000.0,
            "paced/tokens/validation/prompt": 500.0,
            "paced/tokens/validation/generated": 1000.0,
            "paced/tokens/teacher/prompt": 5000.0,
            "paced/tokens/teacher/generated": 0.0 if second else 4000.0,
            "actor/grad_norm": 0.8 * noise + 0.2,
            "timing_s/step": 20.0,
            "perf/total_num_tokens": 8000.0,
        }

    def table(self, shift: float, unseen: float = 0.0) -> PassRateTable:
        """Pass rates of a student that has learned by ``shift`` (on the scale of log-odds)."""
        named = fingerprint(self.messages[place] for place in spread(range(self.prompts)))
        table = PassRateTable(self.prompts, fingerprint=named)
        rates = 1 / (1 + np.exp(-2 * (self.ability + shift)))
        samples = np.where(self.rng.random(self.prompts) < unseen, 0, SAMPLES)
        table.observe(np.arange(self.prompts), self.rng.binomial(samples, rates), samples, step=1)
        return table

    def estimate(self, folder: Path, done: int, table: PassRateTable) -> None:
        (folder / "paced" / "pass_rates").mkdir(parents=True, exist_ok=True)
        table.save(folder / "paced" / "pass_rates" / f"after_step_{done}.parquet")

    def checkpoint(self, folder: Path, done: int, table: PassRateTable, responses: Sequence[int] = ()) -> Path:
        kept = folder / f"global_step_{done}" / "paced"
        kept.mkdir(parents=True, exist_ok=True)
        table.save(kept / "pass_rates.parquet")
        store = TargetStore()
        for prompt in responses:
            text = f"</script> The answer to {prompt}"
            store.add(prompt, Target((1, 2), text, correct=True, prompt_hash=prompt_hash(self.messages[prompt])))
        store.save_parts(kept / "targets")
        (kept / "state.json").write_text(json.dumps({"last_refresh": 1, "fitted": {}}))
        return kept

    def whole(self, name: str = "paced-run", total: int = 40, gain: float = 0.25, end: bool = True) -> Path:
        """A two-stage run that has come to its end."""
        folder = self.begin(name, total)
        self.train(folder, range(total + 1), total, gain)
        for done, shift in ((0, -0.6), (total // 2, 0.3), (total, 1.2)):
            self.estimate(folder, done, self.table(shift))
        first, last = self.table(-0.6), self.table(1.2)
        # One prompt for each story, whatever chance makes of the others.
        for table, known in ((first, (0, 8)), (last, (8, 1))):
            table.successes[:2], table.samples[:2] = known, SAMPLES
        self.estimate(folder, 0, first)
        self.estimate(folder, total, last)
        self.checkpoint(folder, total, last, range(self.prompts))
        if end:
            record_end(folder / "paced")
        return folder


def age(folder: Path, seconds: float) -> None:
    """Make all files of a run look as if last written so long ago."""
    for file in folder.rglob("*"):
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))
