"""Names that a configuration may give to functions from inside and outside this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paced_verl.errors import PacedError, nearest

T = TypeVar("T")


def registering(registry: dict[str, T], kind: str, name: str) -> Callable[[T], T]:
    """A decorator that enters what it decorates under a name.

    Raises:
        ValueError: The name is taken.
    """
    if name in registry:
        raise ValueError(f"a {kind} named {name!r} is already registered")

    def register(entry: T) -> T:
        registry[name] = entry
        return entry

    return register


def registered(registry: dict[str, T], kind: str, name: str) -> T:
    """What was entered under a name.

    Raises:
        PacedError: Nothing was; it gives the nearest name, or all there are.
    """
    if name not in registry:
        raise PacedError(f"no {kind} {name!r}. {nearest(name, sorted(registry))}")
    return registry[name]
