"""Students, samples, regressions, one table, and the page that shows it.

    OMP_NUM_THREADS=1 python -m scripts.experiments.predicted    # writes the table and the page's numbers
    python -m scripts.experiments.predicted --check              # the page shows what the committed table says

In the environment of scripts/setup_cpu.sh. Samples are kept in ``outputs/`` and used again; the regressions take a few
minutes. ``--check`` needs neither torch nor scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.experiments.page import PAGES, ROOT, command
from scripts.experiments.predicted.page import blocks
from scripts.experiments.predicted.regimes import SEEDS

MODULE = "scripts.experiments.predicted"
SAMPLES = ROOT / "outputs" / "predicted_pass_rates.parquet"
TABLE = PAGES / "predicted_pass_rates.parquet"
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


def run() -> pa.Table:
    """The study, on samples that are there or are taken now."""
    from scripts.experiments.predicted.study import study

    return study(collect(SAMPLES))


if __name__ == "__main__":
    command(__doc__, MODULE, TABLE, blocks, run)
