"""Kill a run with SIGKILL at ten random moments, resume it each time, and look for what was lost.

    VERL_PLATFORM=cpu python scripts/kill_and_resume.py --mode paced_sync --out outputs/kills

Data are as strangers have them: a subset of a larger file, shuffled, no seed. Moments: start-up, an estimate of pass
rates, steps of both stages, and saves. Compared are, for every step of the finished run:

- its prompts, with the order of (seed, epoch) over the subset, and in the synchronous mode with an undisturbed run's;
- its stage, with the schedule;
- the pass rates in its checkpoint, with the last estimate and the rollouts that were trained since;
- the stored teacher responses in its checkpoint: one a prompt that stage 1 has trained, the same ones to the end.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from paced_verl.config import PassRateConfig  # noqa: E402
from paced_verl.pacing.pass_rates import PassRateTable  # noqa: E402
from paced_verl.pacing.sampler import shuffled  # noqa: E402
from paced_verl.report.run import Run  # noqa: E402
from paced_verl.targets.store import Target, TargetStore  # noqa: E402
from tests.e2e.harness import Launched, Workplace  # noqa: E402

ROWS, SUBSET, BATCH, STEPS = 64, 40, 8, 48  # five steps an epoch
SWITCH = STEPS // 2  # the last step of stage 1
AHEAD = 2  # steps by which an asynchronous run may be late
DECAY = PassRateConfig().decay
DATA_SEED = 1  # what a paced run sets where data.seed is null
MOMENTS = ("start", "estimate", "start", "step", "save", "step", "estimate", "start", "step", "save")
OVERRIDES = (
    f"data.train_max_samples={SUBSET}",
    "data.shuffle=True",
    "paced.weight.estimate=posterior",  # no weight is 0, so the order of the prompts does not depend on the rollouts
    "trainer.total_epochs=10",
)
ASYNCHRONOUS = ("trainer.v1.colocate_async.num_warmup_batches=1",)


@dataclass
class Watched:
    """A run under way: its log, as far as it has come."""

    workplace: Workplace
    started: float
    began: float = field(default_factory=time.time)
    log: str = ""

    def listen(self, line: str) -> None:
        self.log += line

    def saves(self, step: int) -> bool:
        """Whether this run, not one before it, has begun to write the checkpoint of a step."""
        folder = self.workplace.checkpoints / f"global_step_{step}" / "paced"
        return folder.exists() and folder.stat().st_mtime > self.began

    @property
    def saved(self) -> int:
        """The step of the last whole checkpoint; 0 without one."""
        tracker = self.workplace.checkpoints / "latest_checkpointed_iteration.txt"
        return int(tracker.read_text() or 0) if tracker.exists() else 0


def moment_of(kind: str, run: Watched, chance: random.Random) -> Callable[[], bool]:
    """Whether it is time to kill: a random time after what the kind of moment begins with."""
    first = run.saved
    seconds = {"start": chance.uniform(5, 60), "estimate": chance.uniform(0, 1.5), "step": chance.uniform(0, 2)}
    delay = seconds.get(kind, chance.uniform(0, 0.4))
    after = first + chance.choice((1, 2, 3))
    begins: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "estimate": lambda: "Pass rates:" in run.log,
        "step": lambda: run.saved >= after,
        "save": lambda: run.saves(after),
    }
    since: list[float] = [run.started] if kind == "start" else []

    def now() -> bool:
        if not since and begins[kind]():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= delay

    return now


def disturb(workplace: Workplace, overrides: tuple[str, ...], seed: int) -> None:
    """Kill the run ten times; then let it end."""
    chance = random.Random(seed)
    for number, kind in enumerate(MOMENTS, start=1):
        run = Watched(workplace, time.monotonic())
        before = run.saved
        launched = workplace.launch_until(moment_of(kind, run, chance), *overrides, steps=STEPS, on_line=run.listen)
        print(f"kill {number}, {kind}: after {launched.seconds:.0f} s, checkpoint {before} → {run.saved}", flush=True)
    finish(workplace.launch(*overrides, steps=STEPS))


def finish(launched: Launched) -> None:
    if launched.code:
        sys.exit(f"A run ended with code {launched.code}:\n{launched.tail(60)}")
    print(f"the run ended after {launched.seconds:.0f} s", flush=True)


def subset() -> list[int]:
    """The rows of the file that a run draws from: numpy's choice, as verl makes it, under the seed it is given."""
    return np.random.default_rng(DATA_SEED).choice(ROWS, size=SUBSET, replace=False).tolist()


def order() -> list[int]:
    """Rows of the file as a run draws them: pseudo-random epochs over the subset."""
    rows, epochs = np.array(subset()), range(-(-(STEPS + AHEAD) * BATCH // SUBSET))
    return np.concatenate([rows[shuffled(np.arange(SUBSET), SUBSET, (0, epoch))] for epoch in epochs]).tolist()


def lost_prompts(workplace: Workplace, undisturbed: Workplace | None) -> Iterator[str]:
    """Of every step's prompts; an asynchronous run may train them later than drawn, but each as often as drawn."""
    drawn, seen = order(), Counter[int]()
    for step in range(1, STEPS + 1):
        trained = workplace.prompts_trained(step)
        seen.update(trained)
        if undisturbed is not None:
            if trained != sorted(drawn[(step - 1) * BATCH : step * BATCH]):
                yield f"step {step} trained rows {trained}, not the ones that come next"
            if trained != undisturbed.prompts_trained(step):
                yield f"step {step} trained other rows than the undisturbed run"
        elif seen - Counter(drawn[: (step + AHEAD) * BATCH]):
            yield f"until step {step} rows were trained more often than drawn: {seen}"
    if missing := Counter(drawn[: (STEPS - AHEAD) * BATCH]) - seen:
        yield f"rows were drawn and not trained: {missing}"


def wrong_stages(run: Run) -> Iterator[str]:
    # verl logs a step after its checkpoint: a kill in between leaves the checkpoint alone.
    stages = {step: int(value) for step, value in run.series("paced/stage").items()}
    if wrong := {step: stage for step, stage in stages.items() if stage != (1 if step <= SWITCH else 2)}:
        yield f"stages by step: {wrong}"
    if len(stages) < STEPS - len(MOMENTS):
        yield f"only the steps {sorted(stages)} have metrics"


def wrong_tables(workplace: Workplace, run: Run) -> Iterator[str]:
    """Every checkpoint's table is the last estimate and the rollouts that were trained since."""
    position = {row: i for i, row in enumerate(subset())}
    table = run.pass_rates[0]
    for step in range(1, STEPS + 1):
        table = run.pass_rates.get(step - 1, table)
        table.decay = DECAY  # a file holds counts only
        rollouts = workplace.rollouts(step)
        prompts = np.array([position[workplace.row_of(rollout["input"])] for rollout in rollouts])
        # A teacher response stands alone for its prompt, and says nothing about the student. An asynchronous run
        # trains the last of them after the stage has changed.
        own = np.bincount(prompts, minlength=SUBSET)[prompts] > 1
        scores = np.array([rollout["score"] for rollout in rollouts])
        table.observe(prompts[own], scores[own], np.ones(own.sum()), step)
        saved = PassRateTable.load(workplace.checkpoints / f"global_step_{step}" / "paced" / "pass_rates.parquet")
        if not (np.array_equal(saved.successes, table.successes) and np.array_equal(saved.samples, table.samples)):
            yield f"step {step}: the table is not the last estimate and the rollouts since"


def lost_targets(workplace: Workplace) -> Iterator[str]:
    """Responses are stored as stage 1 trains them, one a prompt, and stay the same."""
    position = {row: i for i, row in enumerate(subset())}
    kept: dict[int, Target] = {}
    for step in range(1, STEPS + 1):
        store = TargetStore()
        store.load(workplace.checkpoints / f"global_step_{step}" / "paced" / "targets")
        stored = {prompt: store[prompt] for prompt in range(SUBSET) if prompt in store}
        if changed := [prompt for prompt, target in kept.items() if stored.get(prompt) != target]:
            yield f"step {step}: the responses of prompts {changed} changed"
        wanted = {
            position[row] for before in range(1, min(step, SWITCH) + 1) for row in workplace.prompts_trained(before)
        }
        if stored.keys() != wanted:
            yield f"step {step}: responses of prompts {sorted(stored)}, trained were {sorted(wanted)}"
        kept = stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["paced_sync", "paced_colocate_async"], default="paced_sync")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; another at every call")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "kills")
    parser.add_argument("--check", action="store_true", help="only look at the files of the run of this --seed again")
    parser.add_argument("--models", type=Path, help="made by tiny_models.py --preset test; default: made here")
    args = parser.parse_args()
    models = args.models or args.out / "models"
    if not (models / "student").exists():
        sys.exit(f"No models: python scripts/tiny_models.py --preset test --out {models}")
    print(f"{args.mode}, moments of seed {args.seed}", flush=True)
    synchronous = args.mode == "paced_sync"
    overrides = (*OVERRIDES, f"trainer.v1.trainer_mode={args.mode}", *(() if synchronous else ASYNCHRONOUS))
    undisturbed = None
    if synchronous:
        undisturbed = Workplace(args.out / args.mode / "undisturbed", models)
        if not undisturbed.checkpoints.exists():
            finish(undisturbed.launch(*overrides, steps=STEPS))
    workplace = Workplace(args.out / args.mode / f"killed-{args.seed}", models)
    if not args.check:
        disturb(workplace, overrides, args.seed)
    run = workplace.run()
    found = [
        *lost_prompts(workplace, undisturbed),
        *wrong_stages(run),
        *wrong_tables(workplace, run),
        *lost_targets(workplace),
    ]
    print("\n".join(found) or f"Nothing was lost: {STEPS} steps, {len(MOMENTS)} kills.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
