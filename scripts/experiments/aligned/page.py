"""What the page says, out of the study's table: a row a case, with the numbers of ``alignment.json``."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.experiments.page import lines, wrapped

Row = dict[str, Any]
DIVERGENCES = ("reverse_kl", "forward_kl")
FIFTHS = ("0 to .2", ".2 to .4", ".4 to .6", ".6 to .8", ".8 to 1")


def blocks(table: list[Row]) -> dict[str, str]:
    """Text by the name of its place."""
    numbers = {row["case"]: json.loads(row["numbers"]) for row in table}
    return {
        "teachers": _teachers(numbers),
        "against": _against(numbers),
        "outcomes": _outcomes(numbers),
        "rates": _pass_rates(numbers),
        "cost": _cost(table, numbers),
        "exact": _exact(table),
        "speed": _speed(table),
        "tokens": _tokens(table),
    }


def shown(found: Mapping[str, float]) -> str:
    """A value with half of its 95 % interval; bold where 0 is outside."""
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if math.isnan(value):
        return ""
    if math.isnan(low):
        return f"{value:+.2f}"
    text = f"{value:+.2f} ± {(high - low) / 2:.2f}"
    return f"**{text}**" if low > 0 or high < 0 else text


def _teachers(numbers: Mapping[str, Any]) -> str:
    table = []
    for case, found in numbers.items():
        for teacher, both in itertools.groupby(found["teachers"], key=lambda one: one["teacher"]):
            by_name = {one["divergence"]: one for one in both}
            reverse, forward = (by_name[name] for name in DIVERGENCES)
            table.append(
                [
                    case,
                    teacher,
                    *(shown(one["aggregate"]) for one in (reverse, forward)),
                    shown(reverse["naive"]),
                    shown(reverse["advantage"]),
                    "knows nothing" if math.isnan(reverse["reliability"]) else f"{reverse['reliability']:.3f}",
                ]
            )
    head = ["case", "teacher", "cosine, reverse KL", "cosine, forward KL", "mean of cosines, reverse KL"]
    return lines([*head, "slope along the mixture", "two halves agree"], table)


def _against(numbers: Mapping[str, Any]) -> str:
    """Differences of cosines: a teacher minus another one, or minus one that knows nothing."""
    table = []
    for case, found in numbers.items():
        known = {one["teacher"] for one in found["outcomes"]}
        pairs: dict[tuple[str, str], dict[str, str]] = {}
        for one in found["against"]:
            if one["first"] in known:
                pairs.setdefault((one["first"], one["second"]), {})[one["divergence"]] = shown(one)
        table += [[case, *pair, *(both[name] for name in DIVERGENCES)] for pair, both in pairs.items()]
    return lines(["case", "teacher", "minus", "reverse KL", "forward KL"], table)


def _outcomes(numbers: Mapping[str, Any]) -> str:
    keys = ("naive_correct", "naive_wrong", "correct", "wrong", "gap", "matched_gap")
    table = [
        [case, one["teacher"], one["divergence"], *(shown(one[key]) for key in keys)]
        for case, found in numbers.items()
        for one in found["outcomes"]
    ]
    head = ["case", "teacher", "divergence", "mean, correct", "mean, failed", "correct", "failed", "failed − correct"]
    return lines([*head, "at nodes that match"], table)


def _pass_rates(numbers: Mapping[str, Any]) -> str:
    table = []
    for case, found in numbers.items():
        key = lambda one: (one["teacher"], one["divergence"])  # noqa: E731
        for (teacher, divergence), rows in itertools.groupby(found["pass_rates"], key=key):
            by_fifth = {one["fifth"]: one for one in rows}
            cells = [f"{shown(by_fifth[i])} ({by_fifth[i]['questions']})" if i in by_fifth else "" for i in range(5)]
            table.append([case, teacher, divergence, *cells])
    return lines(["case", "teacher", "divergence", *(f"pass rate {fifth}" for fifth in FIFTHS)], table)


def _cost(table: list[Row], numbers: Mapping[str, Any]) -> str:
    rows = []
    for row in table:
        found = numbers[row["case"]]
        free, forced = found["rollouts"]["free"], found["rollouts"]["forced"]
        rows.append(
            [
                row["case"],
                str(len(found["questions"])),
                f"{free:,}",
                f"{forced:,}",
                f"{found['nodes']['scored']:,} of {found['nodes']['chosen']:,}",
                f"{row['minutes']:.1f}",
                f"{row['rollouts_by_contrast']:.2f}",
            ]
        )
    head = ["case", "questions", "free responses", "forced continuations", "nodes with a choice", "minutes"]
    return lines([*head, "rollouts by contrast, of uniform's"], rows)


def _exact(table: list[Row]) -> str:
    pairs = [pair for row in table for pair in json.loads(row["exact"] or "[]")]
    k, n, low, high = (np.array([pair[key] for pair in pairs], float) for key in ("k", "n", "low", "high"))
    rate, truth = k / n, (low + high) / 2
    z = (rate - np.clip(rate, low, high)) / np.sqrt(np.clip(truth * (1 - truth), 1e-9, None) / n)
    off, inside = np.mean(np.abs(rate - truth)), np.mean(np.abs(z) <= 2)
    text = (
        f"The student's own tree of responses was written down at {len(pairs)} tokens, which bounds the true success "
        f"within {np.max(high - low):.3f} at most. The measured success differs from it by {off:.3f} in the mean, with "
        f"{np.median(n):.0f} visits (median), and lies within two standard errors of the bounds at {inside:.0%}."
    )
    return wrapped(text)


def _speed(table: list[Row]) -> str:
    rates = {key: value for row in table for key, value in json.loads(row["speed"] or "{}").items()}
    one, two, estimate = (rates[key] for key in ("one server", "two servers", "estimate"))
    text = (
        f"Forced continuations came at {one / estimate:.1f} times the rate of a paced run's own estimate of pass rates "
        f"with the same models and prompts: {one:.0f} and {estimate:.0f} a second. Two server processes make "
        f"{two / one:.2f} times as many as one on these two cores."
    )
    return wrapped(text)


def _tokens(table: list[Row]) -> str:
    rows = []
    for row in table:
        for found in json.loads(row["predicted"]):
            scores = [_auroc(found.get(key)) for key in ("held_out", "position", "tip")]
            rows.append([row["case"], found["teacher"], found["divergence"], f"{found['right']:.0%}", *scores])
    head = [
        "case",
        "teacher",
        "divergence",
        "nodes whose loss helps",
        "fitted, on other questions",
        "position alone",
        "TIP",
    ]
    return lines(head, rows)


def _auroc(found: Mapping[str, float] | None) -> str:
    return (
        "nothing to tell apart"
        if found is None
        else f"{found['auroc']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    )
