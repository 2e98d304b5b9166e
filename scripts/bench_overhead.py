"""What the plugin costs: step time of a run without pacing under the plugin, against verl's own distillation run.

Both train the same student from the same teacher on the same prompts, n rollouts a prompt, verl's own divergence
(``forward_kl_topk``), with verl's launcher, one after the other; the paced run has ``kernel: uniform``. Differences are
then the plugin's: its agent loop, its sampler, its loss, and what it saves (no old log-probabilities in pure
distillation, a shorter wait for rollouts).

    python scripts/bench_overhead.py --models DIR --steps 40

``DIR`` as scripts/tiny_models.py makes it; five minutes a run on 2 cores. Prints medians of verl's own ``timing_s/*``
and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("step", "gen", "old_log_prob", "adv", "update_actor", "update_weights")


def overrides(models: Path, steps: int, folder: Path) -> list[str]:
    return [
        "+machine=cpu",
        f"data.train_files={models}/data/train.parquet",
        f"data.val_files={models}/data/test.parquet",
        "data.train_batch_size=16",
        "data.max_prompt_length=32",
        "data.max_response_length=16",
        f"actor_rollout_ref.model.path={models}/student",
        f"distillation.teacher_models.teacher_model.model_path={models}/teacher",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
        "actor_rollout_ref.actor.optim.lr=1e-5",
        "actor_rollout_ref.rollout.n=4",
        "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
        "reward.custom_reward_function.name=compute_score",
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={folder}/checkpoints",
    ]


VERL = [
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.rollout.calculate_log_probs=False",
    "distillation.enabled=True",
    "distillation.distillation_loss.loss_mode=forward_kl_topk",
    "distillation.distillation_loss.topk=64",
    "distillation.distillation_loss.use_task_rewards=False",
]
PACED = [
    "+paced=uniform",
    "paced.pass_rate.from_training=True",
    "paced.schedule=[{until: 1.0, divergence: forward_kl_topk, responses: student}]",
]


def measure(name: str, extra: list[str], models: Path, steps: int, warm_up: int) -> dict[str, float]:
    """Run verl and return the median seconds of each part of a step."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(metrics), "VERL_PLATFORM": "cpu"}
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(models, steps, Path(folder)), *extra]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        entries = [json.loads(line)["data"] for line in metrics.read_text().splitlines()][warm_up:]
    return {
        part: statistics.median(entry[f"timing_s/{part}"] for entry in entries if f"timing_s/{part}" in entry)
        for part in PARTS
        if any(f"timing_s/{part}" in entry for entry in entries)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    models = args.models.resolve()
    results = {}
    for name, extra in (("verl", VERL), ("paced", PACED)):
        results[name] = measure(name, extra, models, args.steps, args.warm_up)
        print(f"{name}: a step takes {results[name]['step']:.3f} s (median)", flush=True)
    print(f"{'part':16s} {'verl, s':>9s} {'paced, s':>9s} {'ratio':>7s}")
    for part in PARTS:
        verl, paced = results["verl"].get(part), results["paced"].get(part)
        ratio = f"{paced / verl:7.3f}" if verl and paced else f"{'–':>7s}"
        print(f"{part:16s} {verl or 0:9.3f} {paced or 0:9.3f} {ratio}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
