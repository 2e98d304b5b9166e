"""The runs: `paced-verl align` on tiny pairs, with real servers, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from paced_verl.alignment.predict import fit_to
from paced_verl.alignment.targets import contrast
from paced_verl.errors import PacedError
from paced_verl.report.run import Run
from scripts import quickstart, tiny_models

PAIRS, SEED = 200, 0
SUMS = {"min_terms": 2, "max_terms": 4, "max_digits": 1}
_WORDS, _SELF = (tiny_models.PRESETS[recipe, "full"] for recipe in ("two_stage", "self_distillation"))
assert _WORDS.teacher is not None


@dataclass(frozen=True)
class Case:
    """A measurement.

    Attributes:
        preset: Data and models.
        recipe: The ``paced`` group.
        contexts: What teachers see.
        own_teacher: Whether there is a model besides the student.
    """

    preset: tiny_models.Preset
    recipe: str
    contexts: tuple[str, ...]
    own_teacher: bool = True


_NONE = ("none",)
CASES = {
    "words": Case(
        replace(_WORDS, families={"spell_backward": tiny_models.WORDS}, turns=(), held_out=()), "two_stage", _NONE
    ),
    "sums": Case(
        replace(
            _WORDS,
            families={"chain_sum": SUMS},
            turns=(),
            held_out=(),
            student=replace(_WORDS.student, seen=None),
        ),
        "two_stage",
        _NONE,
    ),
    "solutions": Case(_SELF, "self_distillation", ("solution", "other"), own_teacher=False),
}
SETTINGS = {"nulls": "[sharpen,suppress,uniform,shuffle]", "budget.minutes": 50.0}
"""Otherwise the package's own."""


def study(folder: Path) -> list[dict[str, Any]]:
    """A row a case: its numbers, its minutes. What is done is read again, what was killed goes on."""
    rows = [one(name, case, folder / name) for name, case in CASES.items()]
    for row in rows:
        for name, measure in (("exact", calibration), ("speed", speed)):
            row[name] = kept(folder / f"{name}.json", partial(measure, folder)) if row["case"] == "words" else ""
    return rows


def kept(file: Path, make: Callable[[], Any]) -> str:
    """What was made once, as JSON."""
    if not file.exists():
        file.write_text(json.dumps(make()))
    return file.read_text()


def one(name: str, case: Case, folder: Path) -> dict[str, Any]:
    models, out = folder / "models", folder / "alignment"
    make(case, models)
    minutes = timed(command(case, models, out), folder / "done.json") / 60
    numbers = json.loads((out / "alignment.json").read_text())
    return {
        "case": name,
        "numbers": json.dumps(numbers),
        "minutes": minutes,
        "predicted": predicted(out),
    } | saved_by_contrast(out)


def predicted(out: Path) -> str:
    """How well a predictor tells which nodes' loss helps, by teacher and divergence, where it can be fitted; JSON."""
    scores = pl.read_parquet(out / "scores.parquet").filter(
        pl.col("student_entropy").is_not_null() & (pl.col("dot") != 0)
    )
    found = []
    for (teacher, divergence), part in scores.group_by("teacher", "divergence", maintain_order=True):
        row = {"teacher": teacher, "divergence": divergence, "right": (part["dot"] > 0).mean()}
        with suppress(PacedError):  # nearly all of one sign: there is nothing to tell apart
            row |= asdict(fit_to(out, str(teacher), str(divergence), SEED))
        found.append(row)
    return json.dumps(found)


def timed(args: list[str], done: Path) -> float:
    """Run a command once; returns the seconds it took."""

    def run() -> float:
        started = time.monotonic()
        subprocess.run(args, cwd=done.parent, check=True, env=os.environ | {"VERL_PLATFORM": "cpu"})
        return time.monotonic() - started

    return float(json.loads(kept(done, run)))


def make(case: Case, models: Path) -> None:
    """Data and models, where they are not there."""
    import torch

    torch.set_num_threads(1)
    tiny_models.build(models, case.preset, SEED, fresh=False)


def command(case: Case, models: Path, out: Path) -> list[str]:
    """What a user would type."""
    reward = "reward.custom_reward_function"
    teacher = f"distillation.teacher_models.teacher_model.model_path={models}/teacher"
    return [
        *(sys.executable, "-m", "paced_verl.cli", "align", "--out", str(out)),
        *(f"+paced={case.recipe}", "+machine=cpu"),
        f"data.train_files={models}/data/train.parquet",
        f"data.val_files={models}/data/test.parquet",
        "data.train_batch_size=32",
        "data.max_prompt_length=64",
        "data.max_response_length=32",
        f"actor_rollout_ref.model.path={models}/student",
        *([teacher] if case.own_teacher else []),
        "actor_rollout_ref.actor.ppo_mini_batch_size=32",
        f"{reward}.path=pkg://paced_verl.tasks.reward",
        f"{reward}.name=compute_score",
        "trainer.total_training_steps=4",
        f"paced.alignment.contexts=[{','.join(case.contexts)}]",
        *(f"paced.alignment.{key}={value}" for key, value in SETTINGS.items()),
    ]


def saved_by_contrast(out: Path) -> dict[str, float]:
    """Share of the rollouts that visits by |c| take for the interval of uniform ones: the variance of ⟨g, d⟩ over all
    nodes under both, by the measured success, of the first teacher's reverse KL."""
    tokens = pl.read_parquet(out / "tokens.parquet")
    by_contrast = uniform = 0.0
    for question in tokens.partition_by("question"):
        visits, spread = [], []
        for node in question.partition_by("node"):
            p = node["p"].to_numpy() / node["p"].sum()
            q = np.array([next(iter(each.values())) for each in node["q"].to_list()])
            q = q / q.sum()
            if np.isnan(q).any():
                continue
            kl = np.sum(p * np.log(p / q))
            c = contrast(p, p * (np.log(q / p) + kl))
            rate = node["k"].to_numpy() / node["n"].to_numpy()
            visits.append(np.abs(c))
            spread.append(c**2 * rate * (1 - rate))
        if not visits:
            continue
        size, noise = np.concatenate(visits), np.concatenate(spread)
        share = np.maximum(size / max(size.sum(), 1e-300), 1e-12)
        by_contrast += float(np.sum(noise / share))
        uniform += float(np.sum(noise * len(size)))
    return {"rollouts_by_contrast": by_contrast / uniform if uniform else float("nan")}


def speed(folder: Path) -> dict[str, float]:
    """Rollouts a second: forced ones with one and with two server processes, and those of a run's own estimate."""
    models, rates = folder / "words" / "models", {}
    for name, servers in (("one server", 1), ("two servers", 2)):
        out = folder / name.replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        more = [
            "paced.alignment.budget.rollouts=12000",
            f"trainer.n_gpus_per_node={servers}",
            "ray_kwargs.ray_init.num_gpus=3",
        ]
        timed([*command(CASES["words"], models, out / "alignment"), *more], out / "done.json")
        rates[name] = pace(out / "alignment" / "rollouts")
    args = argparse.Namespace(recipe="two_stage", preset="full", seed=SEED, steps=2, keep_going=True)
    quickstart.launch(("paced.pass_rate.refresh=start", "paced.pass_rate.samples=2"), folder / "estimate", models, args)
    run = Run.read(folder / "estimate" / "checkpoints")
    measured, seconds = (sum(run.series(f"paced/pass_rate/{name}").values()) for name in ("measured", "seconds"))
    return rates | {"estimate": 2 * measured / seconds}


def pace(rollouts: Path) -> float:
    """Forced rollouts a second, by when the parts that hold them were written."""
    parts = sorted(rollouts.glob("*.parquet"), key=lambda part: part.stat().st_mtime)
    forced = [part for part in parts if (pl.read_parquet(part)["forced"] >= 0).any()]
    first, *others = forced
    return sum(pl.read_parquet(part).height for part in others) / (others[-1].stat().st_mtime - first.stat().st_mtime)


def calibration(folder: Path) -> list[dict[str, Any]]:
    """Measured success of 200 tokens of the words beside the bounds of the student's own tree of responses."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from paced_verl.tasks.reward import compute_score
    from scripts.experiments.aligned import exact

    torch.set_num_threads(1)
    models, out = folder / "words" / "models", folder / "words" / "alignment"
    model = AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(models / "student")
    problems = pl.read_parquet(models / "data" / "train.parquet").to_dicts()
    questions = json.loads((out / "alignment.json").read_text())["questions"]
    tokens = pl.read_parquet(out / "tokens.parquet").sample(PAIRS, seed=SEED).to_dicts()
    rows = []
    for token in tokens:
        problem = problems[questions[token["question"]]["prompt"]]
        prompt = tokenizer.apply_chat_template(problem["prompt"], add_generation_prompt=True)["input_ids"]
        begun = [*tokenizer.encode(token["before"], add_special_tokens=False), token["token"]]

        def correct(said: Any, problem: dict[str, Any] = problem) -> bool:
            text = tokenizer.decode(said, skip_special_tokens=True)
            truth = problem["reward_model"]["ground_truth"]
            return bool(compute_score(problem["data_source"], text, truth, problem["extra_info"])["acc"] == 1)

        ends = frozenset({tokenizer.eos_token_id})
        bounds = exact.success(model, len(tokenizer), prompt, begun, ends, 32, correct)
        rows.append({"k": token["k"], "n": token["n"], "low": bounds.low, "high": bounds.high})
    return rows
