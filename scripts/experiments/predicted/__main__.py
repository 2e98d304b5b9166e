"""Students, samples, regressions, one table, and the page that shows it.

    OMP_NUM_THREADS=1 python -m scripts.experiments.predicted    # writes the table and the page's numbers
    python -m scripts.experiments.predicted --check              # the page shows what the committed table says

In the environment of scripts/setup_cpu.sh. Samples are kept in ``outputs/`` and used again; the regressions take a few
minutes. ``--check`` needs neither torch nor scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.experiments.page import put
from scripts.experiments.predicted.page import blocks
from scripts.experiments.predicted.regimes import SEEDS

MODULE = "scripts.experiments.predicted"
ROOT = Path(__file__).resolve().parents[3]
SAMPLES = ROOT / "outputs" / "predicted_pass_rates.parquet"
TABLE = ROOT / "docs" / "experiments" / "predicted_pass_rates.parquet"
PAGE = TABLE.with_suffix(".md")


def collect(path: Path) -> pa.Table:
    """The samples of ``path``, taken first if there are none."""
    if not path.exists():
        import torch

        from scripts.experiments.predicted.students import laboratory

        torch.set_num_threads(1)  # at these sizes threads cost more than they give
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(laboratory(SEEDS))), path)
    return pq.read_table(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the page with the committed table")
    check = parser.parse_args().check
    if not check:
        from scripts.experiments.predicted.study import study

        pq.write_table(study(collect(SAMPLES)), TABLE)
    before = PAGE.read_text()
    after = put(before, blocks(pq.read_table(TABLE).to_pylist()), MODULE)
    if check:
        sys.exit(0 if after == before else f"{PAGE.name} does not show what {TABLE.name} says: run the study again")
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
