"""Pages whose numbers are written by a program: text between markers, tables, paragraphs."""

from __future__ import annotations

import re
from textwrap import fill


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
