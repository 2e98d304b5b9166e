"""Time and memory of the stored teacher responses, by default at the paper's size.

    python scripts/bench_targets.py
    python scripts/bench_targets.py --prompts 400 --tokens 8000 --baseline

A run that has stored all responses saves a checkpoint, stores one more batch, saves the next one, and so on. Token ids
are drawn from a Zipf distribution, a response's text is its ids in digits. ``--baseline`` holds the same responses as
tuples of Python integers and writes all of them to one file at each checkpoint. Seconds are the processor's, so that
other processes on the machine do not count.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from paced_verl.targets.files import SCHEMA
from paced_verl.targets.store import Target, TargetStore

VOCABULARY = 151_936
EXPONENT = 1.2
IDS = np.random.default_rng(0).permutation(VOCABULARY)  # of tokens, by how often they occur


def resident() -> float:
    """Memory of this process, GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def response(prompt: int, tokens: int) -> Target:
    ranks = np.random.default_rng(prompt).zipf(EXPONENT, tokens) % VOCABULARY
    ids = IDS[ranks].tolist()
    return Target(tuple(ids), " ".join(map(str, ids)), True, f"{prompt:016x}")


def measure_store(prompts: int, tokens: int, batch: int, folder: Path) -> dict[str, float]:
    store, before = TargetStore(), resident()
    for prompt in range(prompts):
        store.add(prompt, response(prompt, tokens))
    row = {"resident GB": resident() - before, "first save s": seconds(lambda: store.save_parts(folder / "1"))}
    for prompt in range(prompts, prompts + batch):
        store.add(prompt, response(prompt, tokens))
    row["next save s"] = seconds(lambda: store.save_parts(folder / "2"))
    row["nothing new s"] = seconds(lambda: store.save_parts(folder / "3"))
    row["one file s"] = seconds(lambda: store.save(folder / "targets.parquet"))
    row["load s"] = seconds(lambda: TargetStore().load(folder / "3"))
    row["file GB"] = (folder / "targets.parquet").stat().st_size / 1e9
    return row


def measure_baseline(prompts: int, tokens: int, folder: Path) -> dict[str, float]:
    before = resident()
    targets = [response(prompt, tokens) for prompt in range(prompts)]
    held = resident() - before

    def save() -> None:
        rows = [
            {"prompt": prompt, **vars(target), "token_ids": list(target.token_ids)}
            for prompt, target in enumerate(targets)
        ]
        columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / "baseline.parquet")

    return {"resident GB": held, "next save s": seconds(save)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8443)
    parser.add_argument("--tokens", type=int, default=16_000, help="a response")
    parser.add_argument("--batch", type=int, default=128, help="responses that come between two checkpoints")
    parser.add_argument("--baseline", action="store_true", help="measure the baseline instead")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        shape = (arguments.prompts, arguments.tokens)
        if arguments.baseline:
            row = measure_baseline(*shape, Path(name))
        else:
            row = measure_store(*shape, arguments.batch, Path(name))
    table = Table(title=f"{arguments.prompts:,} responses of {arguments.tokens:,} tokens")
    for key in row:
        table.add_column(key, justify="right")
    table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
