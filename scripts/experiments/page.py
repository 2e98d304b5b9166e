"""Pages whose numbers are written by a program: text between markers, tables, paragraphs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "experiments"


def command(
    about: str,
    module: str,
    table: Path,
    blocks: Callable[[list[dict[str, Any]]], dict[str, str]],
    study: Callable[[], pa.Table],
) -> None:
    """The command of a study: make its table and write the page beside it, or only compare the two.

    Args:
        about: What ``--help`` says.
        module: Whose markers are on the page.
        table: The study's parquet file; the page has its name, with ``.md``.
        blocks: What the page says of the rows of the table, by the name of its place.
        study: Makes the table. Not called with ``--check``.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the page with the committed table")
    check = parser.parse_args().check
    if not check:
        pq.write_table(study(), table)
    page = table.with_suffix(".md")
    before = page.read_text()
    after = put(before, blocks(pq.read_table(table).to_pylist()), module)
    if check:
        sys.exit(0 if after == before else f"{page.name} does not show what {table.name} says: run the study again")
    page.write_text(after)


def put(page: str, blocks: dict[str, str], module: str) -> str:
    """``page`` with the blocks between its markers ``<!-- NAME: written by python -m MODULE -->`` and ``<!-- end -->``.

    Raises ValueError if one of them has no place there, or two.
    """
    marked = markers(module)
    places = sorted(name for _, name, _ in marked.findall(page))
    if places != sorted(blocks):
        raise ValueError(f"the page has markers for {places}, but there are blocks {sorted(blocks)}")
    return marked.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[3]}", page)


def markers(module: str) -> re.Pattern[str]:
    """What is written by a module, with its markers."""
    return re.compile(rf"(<!-- (\w+): written by python -m {re.escape(module)} -->\n).*?(\n<!-- end -->)", re.S)


def wrapped(text: str, indent: str = "") -> str:
    return fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def lines(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
