"""Levels of difficulty within a capability, and which of them the next prompts are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paced_verl.capability.table import Capabilities, codes_of
from paced_verl.errors import PacedError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TERTILES = ((0.3, (0.1, 0.8, 0.1)), (0.7, (0.1, 0.5, 0.4)), (1.0, (0.05, 0.2, 0.75)))
"""Shares of easy, medium and hard prompts until a share of the budget is spent, as the authors' code has them."""
DRAWS = 1000
"""Of the posterior: shares of levels are known to .03."""
MOST = 100
"""Levels, at most."""
EMPTY = ("", "{}", "null")
By = Literal["frontier", "tertiles"]


@dataclass(frozen=True)
class Levels:
    """How hard each training prompt is.

    Attributes:
        names: Of the levels, from easy to hard where that is known, L.
        of: Level of each prompt, int16 (N,), as the place of its name.
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.int16]

    @classmethod
    def read(cls, values: Any, column: str, order: Sequence[str | int] | None = None, by: By = "frontier") -> Levels:
        """Take the levels of prompts from a column.

        Args:
            values: The column of the training prompts: anything that pyarrow makes an array of, (N,).
            column: Its name, for errors.
            order: Its values from easy to hard; ``None``: ascending, if they are numbers.
            by: Who asks: tertiles need to know which level is harder.

        Raises:
            PacedError: A prompt without a level or with one that ``order`` does not name, too many levels, or no order
                where one is needed.
        """
        codes, known = codes_of(values)
        empty = np.array([*(text.strip() in EMPTY for text in known), True])
        if (without := np.flatnonzero(empty[codes])).size:
            raise PacedError(
                f"{len(without):,} of {len(codes):,} training prompts have no level in the column {column}; the first "
                f"is row {without[0]:,}, counted from 0. Give them one, or name another column."
            )
        present = [known[code] for code in np.unique(codes)]
        if len(present) > MOST:
            raise PacedError(f"the column {column} has {len(present):,} levels: expected {MOST} at most")
        names = _in_order(present, column, order, by)
        place = np.full(len(known), -1, np.int16)
        for code, name in enumerate(known):
            if name in names:
                place[code] = names.index(name)
        return cls(names, place[codes])


def _in_order(present: list[str], column: str, order: Sequence[str | int] | None, by: By) -> tuple[str, ...]:
    if order is not None:
        names = tuple(dict.fromkeys(map(str, order)))
        if missing := sorted(set(present) - set(names)):
            raise PacedError(
                f"order={list(order)}: the column {column} has {', '.join(map(repr, missing[:5]))}, too. Name every "
                "level, from easy to hard."
            )
        return names
    try:
        return tuple(sorted(present, key=float))
    except ValueError:
        if by == "tertiles":
            raise PacedError(
                f"the column {column} has {', '.join(map(repr, sorted(present)[:5]))}, and which of them is harder? "
                "Say so, from easy to hard (paced.capability.curriculum.order)."
            ) from None
    return tuple(sorted(present))


@dataclass(frozen=True)
class Parts:
    """What a run draws from: capabilities, or their levels where they have some.

    Attributes:
        names: ``maths``, or ``maths/3``, P.
        of: Each training prompt's, int16 (N,), as the place of its name; −1: set apart, never drawn.
        capability: Each part's, int64 (P,).
        level: Each part's, int64 (P,); 0 where there are none.
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.int16]
    capability: IntArray
    level: IntArray

    @classmethod
    def split(cls, capabilities: Capabilities, levels: Levels | None) -> Parts:
        """Those that have prompts to train."""
        count = len(capabilities.names)
        if levels is None:
            every = np.arange(count)
            return cls(capabilities.names, capabilities.groups, every, np.zeros_like(every))
        pair = capabilities.groups.astype(np.int64) * len(levels.names) + levels.of
        pair[capabilities.groups < 0] = -1
        present = np.unique(pair[pair >= 0])
        capability, level = np.divmod(present, len(levels.names))
        names = tuple(f"{capabilities.names[c]}/{levels.names[d]}" for c, d in zip(capability, level, strict=True))
        of = np.where(pair >= 0, np.searchsorted(present, pair), -1).astype(np.int16)
        return cls(names, of, capability, level)

    def count(self, probes: Sequence[IntArray], levels: Levels, amounts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Amounts of each part, (P,), of probes that have an amount each; a level that is not trained has no part.

        Args:
            probes: Rows of each capability.
            levels: Of all training prompts.
            amounts: Of the probes, in their order, one capability after the other.
        """
        capability = np.repeat(np.arange(len(probes)), [len(rows) for rows in probes])
        level = levels.of[np.concatenate(probes)]
        pairs = zip(self.capability, self.level, strict=True)
        return np.array([amounts[(capability == c) & (level == d)].sum() for c, d in pairs])

    def even(self) -> FloatArray:
        """The same share for each level of a capability, (P,): they add up to 1 in each."""
        return np.asarray(1 / np.bincount(self.capability)[self.capability])


def frontier_shares(successes: npt.ArrayLike, samples: npt.ArrayLike, rng: np.random.Generator) -> FloatArray:
    """How probably each level's pass rate is the one nearest to 1/2, (L,), by its posterior Beta(1 + k, 1 + n − k).

    A level that was hardly sampled is as probable as anything, so it is tried about as often as it may be the one:
    Thompson's sampling, with as many draws at once as a decision needs.

    Args:
        successes: (L,) k of each level.
        samples: (L,) n.
        rng: Draws from the posterior.

    Raises:
        PacedError: Counts that cannot be.
    """
    k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
    if k.shape != n.shape or k.ndim != 1 or not k.size or (k < 0).any() or (k > n).any():
        raise PacedError(f"expected 0 ≤ successes ≤ samples for each level, got {k} of {n}")
    rates = rng.beta(1 + k, 1 + n - k, (DRAWS, len(k)))
    return np.bincount(np.abs(rates - 0.5).argmin(axis=1), minlength=len(k)) / DRAWS


def tertile_shares(progress: float, levels: int) -> FloatArray:
    """Share of each level, (L,) from easy to hard, at a share of the budget in [0, 1]: the paper's schedule.

    A third of the levels has the schedule's share, each of its levels the same; with fewer than three levels, thirds
    that are empty leave theirs to the others.
    """
    shares = next((shares for until, shares in TERTILES if progress < until), TERTILES[-1][1])
    found = np.concatenate(
        [np.full(len(part), share / max(len(part), 1))
         for part, share in zip(np.array_split(np.arange(levels), 3), shares, strict=True)]
    )  # fmt: skip
    return np.asarray(found / found.sum())


@dataclass(frozen=True)
class Curriculum:
    """Which levels of each capability come next.

    Attributes:
        by: ``frontier``: those whose pass rate is nearest to 1/2; ``tertiles``: the paper's schedule.
        seed: Of the run.
    """

    by: By
    seed: int

    def shares(
        self,
        parts: Parts,
        names: Sequence[str],
        progress: float,
        decision: int,
        counts: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        weighs: npt.NDArray[np.bool_],
    ) -> FloatArray:
        """Share of each part within its capability, (P,): they add up to 1 in each.

        Args:
            parts: That share the draws.
            names: Of the capabilities; a capability's draws of the posterior depend on its name, not on its place.
            progress: Share of the budget, or the steps, that is spent.
            decision: Its number: the same decision with the same counts is the same mix.
            counts: Correct responses, and all, to the probes of each part, (P,) each.
            weighs: Whether a prompt of a part has a weight, (P,): what has none gets nothing while another level has.
        """
        found, (correct, asked) = np.zeros(len(parts.names)), counts
        for capability, name in enumerate(names):
            here = parts.capability == capability
            if weighs[here].any():
                here &= weighs
            if self.by == "tertiles":
                found[here] = tertile_shares(progress, int(here.sum()))
            else:
                rng = np.random.default_rng((self.seed, decision, *name.encode()))
                found[here] = frontier_shares(correct[here], asked[here], rng)
        return found
