"""Time and memory of the pass-rate table and the sampler, from 10^4 to 10^7 prompts.

    python scripts/bench_sampler.py
    python scripts/bench_sampler.py --sizes 1e4 1e6 --repeats 11 --json sampler.json

Every number is a median in milliseconds unless the column says otherwise. "choice" is what numpy offers for the same
draw, `Generator.choice(N, 512, p=w^γ/Σw^γ)` with the probabilities at hand; "ratio" is its time over ours. At γ = 0 the
sampler walks a permutation and skips prompts of weight 0; choice then gets the uniform distribution over the others.
"window" is the sampler of `refresh: draw`, two batches ahead, with half of the prompts measured: a draw, and before it
the question which prompts to measure.

The second table is a mix of 16 capabilities against one sampler over all prompts, on the same table and in turns: CPU
time, so that what else the machine does matters less. "step" is a draw, its loss weights, observation and update;
"all" adds the metrics, which a run asks for every step.
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
from paced_verl.pacing.mix import MixSampler
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import Window
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.pacing.window import WindowSampler

BATCH = 512
TRIALS = 8
CAPABILITIES = 16


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measured(size: int, rng: np.random.Generator) -> PassRateTable:
    table = PassRateTable(size)
    table.observe(np.arange(size), rng.binomial(TRIALS, rng.beta(0.6, 0.6, size)), np.full(size, TRIALS), step=0)
    return table


def measure(size: int, power: float, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    table = measured(size, rng)
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


def measure_mix(size: int, power: float, repeats: int) -> dict[str, float]:
    """Of a mix milliseconds, and how many times those of one sampler they are."""
    rng = np.random.default_rng(0)
    table, groups = measured(size, rng), rng.integers(0, CAPABILITIES, size, dtype=np.int16)
    names, mix = [f"c{group}" for group in range(CAPABILITIES)], rng.dirichlet(np.ones(CAPABILITIES))
    one = PassRateSampler(table, Kernel(), power=power)
    many = MixSampler(table, Kernel(), groups=groups, names=names, mix=mix, power=power)
    holders = [table, many, *many._parts]
    held = {id(x): x.nbytes for holder in holders for x in vars(holder).values() if isinstance(x, np.ndarray)}

    def step(sampler: PassRateSampler | MixSampler) -> None:
        prompts = sampler.draw(BATCH)
        sampler.loss_weights(prompts)
        table.observe(prompts, rng.integers(0, TRIALS + 1, BATCH), np.full(BATCH, TRIALS), step=1)
        sampler.update(prompts)

    row = {"prompts": size, "power": power, "bytes/prompt": sum(held.values()) / size}
    of_step = np.zeros(2)
    for name, times, work in (
        ("draw", 20, lambda sampler: sampler.draw(BATCH)),
        ("one by one", 1, lambda sampler: [sampler.draw(1) for _ in range(BATCH)]),
        ("step", 20, step),
        ("refresh", 1, lambda sampler: sampler.refresh()),
        ("metrics", 1, lambda sampler: sampler.metrics(step=1)),
    ):
        spent: list[list[float]] = [[], []]
        for _ in range(repeats * times):
            for sampler, times_of in zip((one, many), spent, strict=True):
                start = time.process_time()
                work(sampler)
                times_of.append(time.process_time() - start)
        alone, mixed = map(statistics.median, spent)
        row |= {name: 1e3 * mixed, f"{name} ratio": mixed / alone}
        of_step += (alone, mixed) if name in ("step", "metrics") else 0
    return row | {"all ratio": float(of_step[1] / of_step[0])}


def show(rows: list[dict[str, float]], title: str) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in row.values()))
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7], help="numbers of prompts")
    parser.add_argument("--powers", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="sampler.power")
    parser.add_argument("--repeats", type=int, default=5, help="the median is over this many")
    parser.add_argument("--only-mix", action="store_true", help="the second table only")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()

    ways = [(int(size), power) for size in arguments.sizes for power in arguments.powers]
    rows = [] if arguments.only_mix else [measure(*way, arguments.repeats) for way in ways]
    if rows:
        show(rows, f"pass-rate table and sampler, {BATCH} prompts a draw (milliseconds)")
    mixes = [measure_mix(*way, arguments.repeats) for way in ways]
    show(mixes, f"a mix of {CAPABILITIES} capabilities, {BATCH} prompts a draw (milliseconds of CPU time)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"samplers": rows, "mixes": mixes}, indent=2) + "\n")


if __name__ == "__main__":
    main()
