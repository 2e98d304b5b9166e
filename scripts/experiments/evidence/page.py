"""What the page says, out of the tables: every figure and every sentence with a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scripts.experiments.evidence import curves, defaults
from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.cells import (
    BELOW,
    BUDGETS,
    DRAWN,
    GATED,
    HOPELESS,
    LONG,
    MAIN,
    RATES,
    RIGHT,
    SHORT,
    SWEPT,
    ZEROS,
    dose_of,
    named,
)
from scripts.experiments.evidence.contrasts import (
    PLAIN,
    Run,
    Runs,
    by_area,
    by_final,
    by_second,
    of,
    pairs,
    pick,
    registered,
)
from scripts.experiments.evidence.predictions import PREDICTIONS, R3, R7_RIGHT, R7_WRONG, outcome
from scripts.experiments.evidence.regimes import REGIMES
from scripts.experiments.evidence.stats import Difference
from scripts.experiments.page import lines, wrapped

Measure = Callable[[list[tuple[Run, Run]]], Difference]
MAPPED = tuple(name for name in REGIMES if name != BELOW)
ORDERED = tuple(name for name in REGIMES if name.startswith(("R0", "R2", "R3", "R7")))
TWO_STAGES = "two stages"
WAYS = ("forward", "reverse", TWO_STAGES, "two stages, reversed")
KS = (1, 2, 4, 8, 16, 32)
AT = (0, 12, 48)


def blocks(runs: Runs, snr: Sequence[dict[str, Any]], in_verl: Sequence[Run]) -> dict[str, str]:
    """Text by the name of its place.

    Args:
        runs: Of the programme.
        snr: Rows of the agreement of gradients.
        in_verl: Runs of verl's trainer.
    """
    return {
        "runs": _runs(runs),
        "registered": _registered(runs),
        "map": _over_regimes(runs, "E1", MAPPED, _others("E1"), lambda both: by_area(both, "step")),
        "final": _over_regimes(runs, "E1", MAPPED, _others("E1"), by_final),
        "prices": _prices(runs),
        "below": _below(runs),
        "controls": _controls(runs),
        "rates": _rates(runs),
        "doses": _doses(runs),
        "budgets": _budgets(runs),
        "estimates": _estimates(runs),
        "orders": _orders(runs),
        "families": _families(runs),
        "forgetting": _forgetting(runs),
        "snr": _snr(snr),
        "verl": _verl(runs, in_verl),
        "predictions": _predictions(runs),
        "rule": _rule(runs),
    }


# What cells show.


def shown(found: Difference, digits: int = 3) -> str:
    """Mean and half of the 95 % interval; bold where 0 is outside."""
    half = found.t_interval[1] - found.mean
    text = f"{found.mean:+.{digits}f} ± {half:.{digits}f}" if math.isfinite(half) else f"{found.mean:+.{digits}f}"
    return f"**{text}**" if found.t_interval[0] > 0 or found.t_interval[1] < 0 else text


def short(regime: str) -> str:
    """R0 to R7, with the teacher where there are two of one number."""
    number, words = regime.split(" ", 1)
    return f"{number} {words.split(', ')[1].split()[0]}" if number == "R7" else number


def to_uniform(runs: Runs, part: str, regime: str, arm: str, measure: Measure, **where: Any) -> Difference:
    """What an arm has over uniform in the same cell."""
    return measure(pairs(pick(runs, part, regime, arm, **where), pick(runs, part, regime, "uniform", **where)))


def _others(part: str) -> list[str]:
    return [name for name in ARMS if name not in ("uniform", "free estimates")]


def _over_regimes(
    runs: Runs, part: str, regimes: Sequence[str], arms: Sequence[str], measure: Measure, **where: Any
) -> str:
    """A row an arm, a column a regime."""
    table = [[arm, *(shown(to_uniform(runs, part, r, arm, measure, **where)) for r in regimes)] for arm in arms]
    return lines(["arm", *map(short, regimes)], table)


# Blocks.


def _runs(runs: Runs) -> str:
    rows = [row for group in runs.values() for row in group]
    parts = sorted({row["experiment"] for row in rows})
    counts = ", ".join(f"{sum(row['experiment'] == part for row in rows):,} in {part}" for part in parts)
    versions = " and ".join(sorted({row["torch"] for row in rows}))
    return wrapped(f"{len(rows):,} runs ({counts}), with torch {versions}.")


def _registered(runs: Runs) -> str:
    table = []
    for regime, arm, found, p in registered(runs):
        low, high = found.bca_interval
        said = "better" if found.mean > 0 else "worse"
        table.append(
            [regime, arm, shown(found), f"{low:+.3f} to {high:+.3f}", f"{p:.2g}", said if p < 0.05 else "not settled"]
        )
    return lines(["regime", "arm", "difference to uniform", "bootstrap (BCa)", "p, Holm", "at 5 %"], table)


def _prices(runs: Runs) -> str:
    parts = []
    for axis, words in (
        ("rows", "equal trained rows"),
        ("teacher", "equal teacher tokens"),
        ("price 1:1:3", "equal price, 1 : 1 : 3"),
        ("price 1:8:3", "equal price, 1 : 8 : 3"),
    ):
        arms = ("weights", "sampler", "posterior sampler", "sampler, when drawn", "teacher correct", "teacher gate")
        table = [
            [arm, *(shown(to_uniform(runs, "E1", r, arm, lambda both, a=axis: by_final(both, a))) for r in MAPPED)]
            for arm in arms
        ]
        parts.append(lines([f"at {words}", *map(short, MAPPED)], table))
    return "\n\n".join(parts)


def _below(runs: Runs) -> str:
    arms = [arm for arm in (*SHORT, *DRAWN) if arm != "uniform"]
    measures: dict[str, Measure] = {
        "area at equal steps": lambda both: by_area(both, "step"),
        "final, equal steps": by_final,
        "final, price 1 : 1 : 3": lambda both: by_final(both, "price 1:1:3"),
        "final, price 1 : 8 : 3": lambda both: by_final(both, "price 1:8:3"),
    }
    table = [[arm, *(shown(to_uniform(runs, "E1", BELOW, arm, m)) for m in measures.values())] for arm in arms]
    return lines(["arm", *measures], table)


def _controls(runs: Runs) -> str:
    found = [
        to_uniform(runs, "E1", regime, "uniform again", measure)
        for regime in MAPPED
        for measure in (lambda both: by_area(both, "step"), by_final)
    ]
    crossed = sum(gap.p < 0.05 for gap in found)
    spread = max(gap.sd for gap in found)
    text = (
        f"Uniform twice, with another order and other samples, differs at p < .05 in {crossed} of {len(found)} "
        f"comparisons (one in twenty is expected by chance); the standard deviation of such a difference is at most "
        f"{spread:.3f}."
    )
    return wrapped(text)


def _rates(runs: Runs) -> str:
    table = []
    for regime in MAIN:
        for arm in ("uniform", "sampler"):
            for rate in sorted((*RATES, PLAIN["rate"])):
                found = pick(runs, "E0", regime, arm, rate=rate).values()
                at = [np.mean([curves.value_at(*curves.curve(run, "step"), step) for run in found]) for step in AT]
                table.append([regime, arm, f"{rate:g}", *(f"{value:.3f}" for value in at)])
    return lines(["regime", "arm", "learning rate", *(f"step {step}" for step in AT)], table)


def _doses(runs: Runs) -> str:
    parts = []
    for arm in SWEPT[1:]:
        table = [[f"{h:.0%} hopeless", *(shown(dose(runs, arm, h, t)) for t in RIGHT)] for h in HOPELESS]
        parts.append(lines([f"{arm}; teacher right there", *(f"{t:.0%}" for t in RIGHT)], table))
    return "\n\n".join(parts)


def dose(runs: Runs, arm: str, hopeless: float, right: float) -> Difference:
    """Area at equal steps over uniform's, by the share of hopeless prompts and how often the teacher is right there."""
    changes = named(dose_of(hopeless, right))
    return to_uniform(runs, "E2", R3, arm, lambda both: by_area(both, "step"), changes=changes)


def _budgets(runs: Runs) -> str:
    table = []
    for regime, prompts in BUDGETS:
        for arm in LONG:
            found = pick(runs, "E3", regime, arm, changes=f"prompts={prompts}")
            table.append([short(regime), f"{prompts:,}", arm, *_accuracies(found)])
    for arm in ("sampler", "posterior sampler"):
        found = pick(runs, "E3", R3, arm, refresh="every")
        table.append([short(R3), "512", f"{arm}, estimated every 12 steps", *_accuracies(found)])
    return lines(["regime", "prompts", "arm", *(f"step {step}" for step in STEPS_SHOWN)], table)


STEPS_SHOWN = (0, 20, 40, 80, 160, 320, 640, 1280)


def _accuracies(runs: dict[int, Run]) -> list[str]:
    found = []
    for step in STEPS_SHOWN:
        values = [curves.value_at(*curves.curve(run, "step"), step) for run in runs.values()]
        found.append("" if np.isnan(values).any() else f"{np.mean(values):.3f}")
    return found


def _estimates(runs: Runs) -> str:
    def gaps(arm: str, measure: Measure, **where: Any) -> list[str]:
        cells = []
        for regime in MAIN:
            one = pick(runs, "E4", regime, arm, **where)
            cells.append(shown(measure(pairs(one, pick(runs, "E1", regime, "uniform")))) if one else "")
        return cells

    table = []
    for arm in ("sampler", "posterior sampler", "posterior sampler, when drawn"):
        for k in KS:
            columns = [
                *gaps(arm, lambda both: by_area(both, "step"), samples=k),
                *gaps(arm, lambda both: by_final(both, "price 1:1:3"), samples=k),
            ]
            if any(columns):
                table.append([arm, str(k), *columns])
    for arm in ("sampler", "posterior sampler"):
        table.append(
            [
                f"{arm}, estimated every 12 steps",
                "8",
                *gaps(arm, lambda both: by_area(both, "step"), refresh="every"),
                *gaps(arm, lambda both: by_final(both, "price 1:1:3"), refresh="every"),
            ]
        )
    heads = [*(f"{short(r)}, steps" for r in MAIN), *(f"{short(r)}, price" for r in MAIN)]
    first = lines(["arm", "K", *heads], table)
    free = [
        [
            arm,
            *(shown(to_uniform(runs, "E4", r, arm, lambda b: by_area(b, "step"), stages="reverse")) for r in MAIN),
            *(
                shown(to_uniform(runs, "E4", r, arm, lambda b: by_final(b, "price 1:1:3"), stages="reverse"))
                for r in MAIN
            ),
        ]
        for arm in ("sampler", "free estimates")
    ]
    return f"{first}\n\n{lines(['reverse KL', *heads], free)}"


def _orders(runs: Runs) -> str:
    parts = []
    for way in WAYS[1:]:
        arms = (*SHORT[1:], *{"reverse": GATED, TWO_STAGES: ZEROS}.get(way, ()))
        table = _over_regimes(runs, "E5", MAIN, arms, lambda both: by_area(both, "step"), stages=way)
        parts.append(f"{way}:\n\n{table}")
    return "\n\n".join(parts)


def _families(runs: Runs) -> str:
    return _over_regimes(runs, "E6", ORDERED, SHORT[1:], lambda both: by_area(both, "step"), family="sums")


def _forgetting(runs: Runs) -> str:
    table = []
    for regime in (R7_WRONG, R7_RIGHT):
        for arm in ("weights", "sampler", "posterior sampler", "teacher correct", "teacher gate"):
            both = pairs(pick(runs, "E1", regime, arm), pick(runs, "E1", regime, "uniform"))
            ends = [np.mean([run["second"][run["step"].index(48)] for run in each]) for each in zip(*both, strict=True)]
            table.append([regime, arm, *(f"{end:.3f}" for end in ends), shown(by_second(both))])
    return lines(["regime", "arm", "second skill after 48 steps", "uniform's", "at equal new accuracy"], table)


def _snr(snr: Sequence[dict[str, Any]]) -> str:
    table = []
    for regime in dict.fromkeys(row["regime"] for row in snr):
        for rate in sorted({row["pass_rate"] for row in snr}):
            part = [row for row in snr if (row["regime"], row["pass_rate"]) == (regime, rate)]
            if not part:
                continue
            prompts = np.mean([row["prompts"] for row in part])
            mean = {name: np.nanmean([row[name] for row in part]) for name in ("snr2", "length", "cosine")}
            table.append(
                [
                    short(regime),
                    f"{rate - 0.05:.1f} to {rate + 0.05:.1f}",
                    f"{prompts:.0f}",
                    f"{mean['snr2']:.3f}",
                    f"{rate * (1 - rate):.2f}",
                    f"{mean['length']:.2f}",
                    f"{mean['cosine']:+.2f}",
                ]
            )
    head = ["regime", "pass rate", "prompts", "SNR²", "p (1 − p)", "length of a gradient", "cosine to what helps"]
    return lines(head, table)


def _verl(runs: Runs, in_verl: Sequence[Run]) -> str:
    """Arms over uniform with verl's trainer, beside the same arms in plain torch."""
    if not in_verl:
        return "These runs have not been made yet."
    table = []
    for regime in dict.fromkeys(run["regime"] for run in in_verl):
        by_arm: dict[str, dict[int, Run]] = {}
        for run in in_verl:
            if run["regime"] == regime:
                by_arm.setdefault(run["arm"], {})[run["seed"]] = run
        for arm in [name for name in by_arm if name != "uniform"]:
            both = pairs(by_arm[arm], by_arm["uniform"])
            area, there = (
                by_area(both, "step"),
                to_uniform(runs, "E5", regime, arm, lambda both: by_area(both, "step"), stages=TWO_STAGES),
            )
            same = "yes" if area.mean * there.mean > 0 else "no"
            spent = np.mean([one["tokens"][-1] / other["tokens"][-1] for one, other in both])
            table.append(
                [
                    short(regime),
                    arm,
                    str(len(both)),
                    shown(area),
                    shown(there),
                    same,
                    shown(by_final(both)),
                    f"{spent:.2f}",
                ]
            )
    head = ["regime", "arm", "seeds", "area, verl", "area, plain torch", "same sign", "final accuracy, verl"]
    return lines([*head, "tokens beside uniform's"], table)


def _predictions(runs: Runs) -> str:
    table = []
    for p in PREDICTIONS:
        found = of(p, runs)
        low, high = ("" if math.isinf(end) else f"{end:+g}" for end in p.expected)
        came = outcome(p.expected, found)
        compared = f"{p.arm} − {p.against}" if p.arm != p.against else f"{p.arm}: {_way(p.where)} − {_way(p.other)}"
        where = "" if p.arm == p.against else ", ".join(str(value) for _, value in p.where)
        table.append(
            [
                p.name,
                compared + (f" ({where})" if where else ""),
                MEASURES[p.measure] + ("" if p.axis == "step" else f", {p.axis}"),
                f"{low} to {high}",
                shown(found),
                came + (f": {p.if_wrong}" if came == "wrong" and p.if_wrong else ""),
            ]
        )
    return lines(["prediction", "compared", "measure", "expected", "found", "outcome"], table)


MEASURES = {
    "area": "area",
    "final": "final accuracy",
    "tokens": "teacher tokens saved",
    "second": "second skill at equal new accuracy",
}


def _way(where: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(str(value) for _, value in where)


def _rule(runs: Runs) -> str:
    table = []
    for found in defaults.ranked(runs):
        table.append(
            [
                found.arm,
                *(shown(found.harm[r]) for r in defaults.NOTHING_TO_GAIN),
                "yes" if found.harmless else "no",
                *(shown(found.gain[r]) for r in defaults.TO_GAIN),
                f"{found.mean:+.3f}",
            ]
        )
    head = [
        "arm",
        *map(short, defaults.NOTHING_TO_GAIN),
        "non-inferior",
        *map(short, defaults.TO_GAIN),
        "mean",
    ]
    return lines(head, table)
