"""Runs the study, writes its table and the page's numbers.

VERL_PLATFORM=cpu python -m scripts.experiments.when_drawn    # half an hour on 2 cores; goes on where it was killed
python -m scripts.experiments.when_drawn --check              # the page shows what the committed table says
"""

from __future__ import annotations

import pyarrow as pa

from scripts.experiments.page import PAGES, ROOT, command
from scripts.experiments.when_drawn.page import blocks

MODULE = "scripts.experiments.when_drawn"
TABLE = PAGES / "when_drawn.parquet"


def run() -> pa.Table:
    """The study, going on with what is there."""
    from scripts.experiments.when_drawn.study import study

    return pa.Table.from_pylist(study(ROOT / "outputs" / "when_drawn"))


if __name__ == "__main__":
    command(__doc__, MODULE, TABLE, blocks, run)
