"""Runs the study, writes its table and the page's numbers.

VERL_PLATFORM=cpu python -m scripts.experiments.when_drawn    # half an hour on 2 cores; goes on where it was killed
python -m scripts.experiments.when_drawn --check              # the page shows what the committed table says
"""

from __future__ import annotations

import argparse
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.experiments.page import put
from scripts.experiments.when_drawn.page import blocks
from scripts.quickstart import ROOT

MODULE = "scripts.experiments.when_drawn"
TABLE = ROOT / "docs" / "experiments" / "when_drawn.parquet"
PAGE = TABLE.with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the page with the committed table")
    check = parser.parse_args().check
    if not check:
        from scripts.experiments.when_drawn.study import study

        pq.write_table(pa.Table.from_pylist(study(ROOT / "outputs" / "when_drawn")), TABLE)
    before = PAGE.read_text()
    after = put(before, blocks(pq.read_table(TABLE).to_pylist()), MODULE)
    if check:
        sys.exit(0 if after == before else f"{PAGE.name} does not show what {TABLE.name} says: run the study again")
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
