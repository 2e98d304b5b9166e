"""Measures alignment on tiny pairs, writes the table and the page's numbers.

VERL_PLATFORM=cpu python -m scripts.experiments.aligned    # half an hour on 2 cores; goes on where it was killed
python -m scripts.experiments.aligned --check              # the page shows what the committed table says
"""

from __future__ import annotations

import pyarrow as pa

from scripts.experiments.aligned.page import blocks
from scripts.experiments.page import PAGES, ROOT, command

MODULE = "scripts.experiments.aligned"
TABLE = PAGES / "aligned.parquet"


def run() -> pa.Table:
    """The study, going on with what is there."""
    from scripts.experiments.aligned.study import study

    return pa.Table.from_pylist(study(ROOT / "outputs" / "aligned"))


if __name__ == "__main__":
    command(__doc__, MODULE, TABLE, blocks, run)
