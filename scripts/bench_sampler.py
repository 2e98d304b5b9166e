"""Time and memory of the pass-rate table and the sampler, from 10^4 to 10^7 prompts.

    python scripts/bench_sampler.py
    python scripts/bench_sampler.py --sizes 1e4 1e6 --repeats 11 --json sampler.json

Every number is a median in milliseconds unless the column says otherwise. "choice" is what numpy offers for the same
draw, `Generator.choice(N, 512, p=w^γ/Σw^γ)` with the probabilities at hand; "ratio" is its time over ours. At γ = 0 the
sampler walks a permutation and skips prompts of weight 0; choice then gets the uniform distribution over the others.
"window" is the sampler of `refresh: draw`, two batches ahead, with half of the prompts measured: a draw, and before it
the question which prompts to measure.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import Window
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.pacing.window import WindowSampler

BATCH = 512
TRIALS = 8


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(size: int, power: float, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    table = PassRateTable(size)
    table.observe(np.arange(size), rng.binomial(TRIALS, rng.beta(0.6, 0.6, size)), np.full(size, TRIALS), step=0)
    sampler = PassRateSampler(table, Kernel(), power=power)
    weights = sampler.weights()
    mass = weights**power if power else (weights > 0).astype(np.float64)
    probabilities = mass / mass.sum()
    window = half_measured(size, power, rng)
    held = [x for holder in (table, sampler) for x in vars(holder).values() if isinstance(x, np.ndarray)]

    def observe() -> None:
        prompts = rng.integers(0, size, BATCH)
        table.observe(prompts, rng.integers(0, TRIALS + 1, BATCH), np.full(BATCH, TRIALS), step=1)
        sampler.update(prompts)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rates.parquet"
        row = {
            "prompts": size,
            "power": power,
            "bytes/prompt": sum(x.nbytes for x in held) / size,
            "draw": milliseconds(lambda: sampler.draw(BATCH), repeats),
            "choice": milliseconds(lambda: rng.choice(size, BATCH, p=probabilities), repeats),
            "one by one": milliseconds(lambda: [sampler.draw(1) for _ in range(BATCH)], repeats),
            "window draw": milliseconds(lambda: window.draw(BATCH), repeats),
            "what to measure": milliseconds(lambda: window.ahead(1, BATCH), repeats),
            "observe+update": milliseconds(observe, repeats),
            "refresh": milliseconds(sampler.refresh, repeats),
            "metrics": milliseconds(lambda: sampler.metrics(step=1), repeats),
            "save": milliseconds(lambda: table.save(path), repeats),
            "load": milliseconds(lambda: PassRateTable.load(path), repeats),
            "file MB": path.stat().st_size / 1e6,
        }
    return {**row, "ratio": row["choice"] / row["draw"]}


def half_measured(size: int, power: float, rng: np.random.Generator) -> WindowSampler:
    """A sampler of what is measured when it is drawn, in the middle of an epoch of random order."""
    table = PassRateTable(size)
    known = rng.permutation(size)[: size // 2]
    rates = rng.beta(0.6, 0.6, len(known))
    table.observe(known, rng.binomial(TRIALS, rates), np.full(len(known), TRIALS), step=0)
    return WindowSampler(table, Kernel(), Window(BATCH, ahead=2), power=power)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7], help="numbers of prompts")
    parser.add_argument("--powers", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="sampler.power")
    parser.add_argument("--repeats", type=int, default=5, help="the median is over this many")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()

    rows = [measure(int(size), power, arguments.repeats) for size in arguments.sizes for power in arguments.powers]
    table = Table(title=f"pass-rate table and sampler, {BATCH} prompts a draw (milliseconds)")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in row.values()))
    Console(width=160).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
