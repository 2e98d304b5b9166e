"""What a person got wrong, told apart from what this program gets wrong."""

import difflib
from collections.abc import Iterable


class PacedError(ValueError):
    """Something that a person wrote or gave, and can put right. The message is for that person."""


def nearest(name: str, known: Iterable[str], most: int = 20) -> str:
    """A hint to what was meant by an unknown name: the nearest known one, or else all, or nothing if over ``most``."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Choose from: {', '.join(names)}." if len(names) <= most else ""
