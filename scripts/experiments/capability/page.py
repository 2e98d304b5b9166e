"""What the page says, out of the table: every figure and every sentence with a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.experiments.capability import headroom as measured
from scripts.experiments.capability.contrasts import (
    FAMILY,
    STATIC,
    against,
    area,
    gain,
    hurts,
    lowest,
    pick,
    registered,
    utility,
)
from scripts.experiments.capability.predictions import PREDICTIONS, of
from scripts.experiments.capability.problems import NAMES, REQUIREMENT
from scripts.experiments.capability.programme import BY_PROBES, CALIBRATION, MIXES, POLICIES
from scripts.experiments.evidence.predictions import outcome
from scripts.experiments.evidence.shown import shown
from scripts.experiments.page import lines, wrapped

Row = dict[str, Any]
REPORTED = (*POLICIES, *MIXES)
MEASURES = {area: "mean over the run", hurts: "decisions that hurt"}
ORDER = sorted(NAMES, key=lambda name: -REQUIREMENT[name])


def blocks(rows: Sequence[Row]) -> dict[str, str]:
    """Text by the name of its place."""
    return {
        "runs": _runs(rows),
        "levels": _levels(rows),
        "headroom": _headroom(rows),
        "transfer": _transfer(rows),
        "policies": _policies(rows),
        "verdict": _verdict(rows),
        "shares": _shares(rows),
        "capabilities": _capabilities(rows),
        "probes": _other_probes(rows, "more probes", "few probes"),
        "reading": _other_probes(rows, "probes read", "answers alone"),
        "errors": _errors(rows),
        "predictions": _predictions(rows),
    }


def _runs(rows: Sequence[Row]) -> str:
    full = [row for row in rows if row["phase"] == "policies"]
    seeds = sorted({row["seed"] for row in full})
    spent = [sum(row["tokens"]) for row in full]
    decisions = sorted({len(row["planned"]) for row in full})
    return wrapped(
        f"{len(full)} runs are reported, of {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}); they trained on "
        f"{min(spent):,} to {max(spent):,} tokens each, in {_span(decisions)} decisions. "
        f"{len(rows) - len(full)} others are interventions, calibration or runs with other probes. "
        f"A run took {np.median([row['seconds'] for row in full]):.0f} s on a shared core (median), with torch "
        f"{' and '.join(sorted({row['torch'] for row in rows}))}."
    )


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _levels(rows: Sequence[Row]) -> str:
    runs = pick(rows, "policies", STATIC).values()
    table = []
    for name in ORDER:
        i = NAMES.index(name)
        before, final = (np.array([row[key][i] for row in runs]) for key in ("before", "final"))
        table.append([name, f"{REQUIREMENT[name]:g}", f"{before.mean():.3f}", f"{before.std(ddof=1):.3f}",
                      f"{final.mean():.3f}"])  # fmt: skip
    return lines(["capability", "requirement", "before", "deviation between seeds", "after, static mix"], table)


def _headroom(rows: Sequence[Row]) -> str:
    found = measured.found(rows)
    best = ", ".join(f"{name} {found.headroom.best[NAMES.index(name)]:.2f}" for name in ORDER)
    runs = pick(rows, "calibration", STATIC)
    static = ", ".join(f"{gain(runs[seed]):+.3f}" for seed in CALIBRATION)
    more = found.headroom.gain * abs(found.headroom.static_gain)
    text = (
        f"“{found.headroom.verdict}” By its model the static mix would add {found.headroom.static_gain:+.3f} to U over "
        f"the run, and its best fixed mix ({best}) {more:.3f} more. In full runs of the {len(CALIBRATION)} calibration "
        f"seeds the static mix added {static}"
    )
    for arm, words in (("by headroom", "that mix"), ("without deep", "the requirement without `deep`")):
        gaps = against(rows, arm, phase="calibration", base="calibration").gaps
        text += f"; {words} {', '.join(f'{value:+.3f}' for value in gaps)} more"
    return wrapped(f"{text} (a number a seed).")


def _transfer(rows: Sequence[Row]) -> str:
    transfer = measured.found(rows).transfer
    table = []
    for name in ORDER:
        i = NAMES.index(name)
        cells = []
        for other in ORDER:
            j = NAMES.index(other)
            text = f"{transfer.mean[i, j]:+.2f} ± {1.96 * transfer.se[i, j]:.2f}"
            cells.append(f"**{text}**" if abs(transfer.mean[i, j]) > 1.96 * transfer.se[i, j] else text)
        table.append([name, *cells])
    return lines(["gain of, by tokens of", *ORDER], table)


def _policies(rows: Sequence[Row]) -> str:
    adjusted = {arm: (gap, p) for arm, gap, p in registered(rows)}
    table = []
    for arm in REPORTED:
        runs = list(pick(rows, "policies", arm).values())
        static = arm == STATIC
        gap = against(rows, arm)
        low, high = gap.bca_interval
        table.append(
            [
                arm,
                f"{_mean(map(utility, runs)):.3f}",
                "" if static else shown(gap),
                "" if static else f"{low:+.3f} to {high:+.3f}",
                f"{adjusted[arm][1]:.2g}" if arm in FAMILY else "",
                "" if static else shown(against(rows, arm, area)),
                f"{_mean(map(hurts, runs)):.1%}",
                f"{_mean(map(lowest, runs)):.3f}",
            ]
        )
    head = ["policy", "final U", "difference to task_static", "bootstrap (BCa)", "p, Holm", "mean U over the run"]
    return lines([*head, "hurts", "lowest"], table)


def _verdict(rows: Sequence[Row]) -> str:
    """What is settled at 5 %, and how large a difference would have been seen."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for arm, gap, p in registered(rows):
        groups["not told apart" if p >= 0.05 else "better" if gap.mean > 0 else "worse"].append(f"`{arm}`")
    said = "; ".join(f"{words}: {', '.join(arms) or 'none'}" for words, arms in groups.items())
    static = _mean(gain(row) for row in pick(rows, "policies", STATIC).values())
    there = against(rows, "without deep").mean
    won = against(rows, "gains").mean
    return wrapped(
        f"Beside `task_static`, which added {static:.3f} to U, at 5 % after Holm: {said}. What a mix gains "
        f"that only leaves `deep` out is {there:+.3f}, {there / static:+.0%} of that; `gains` got {won:+.3f} of it."
    )


def _shares(rows: Sequence[Row]) -> str:
    table = []
    for arm in REPORTED:
        spent = np.array([row["tokens"] for row in pick(rows, "policies", arm).values()], float)
        shares = (spent / spent.sum(axis=1, keepdims=True)).mean(axis=0)
        table.append([arm, *(f"{shares[NAMES.index(name)]:.2f}" for name in ORDER)])
    return lines(["share of the tokens", *ORDER], table)


def _capabilities(rows: Sequence[Row]) -> str:
    table = []
    for arm in REPORTED:
        final = np.array([row["final"] for row in pick(rows, "policies", arm).values()]).mean(axis=0)
        table.append([arm, *(f"{final[NAMES.index(name)]:.3f}" for name in ORDER)])
    return lines(["accuracy after the run", *ORDER], table)


def _other_probes(rows: Sequence[Row], phase: str, usual: str) -> str:
    """Policies whose probes are other than usual: beside the static mix, beside themselves, and what probes cost."""
    table = []
    for arm in BY_PROBES:
        if not (runs := pick(rows, phase, arm)):
            continue
        gap = against(rows, arm, phase=phase)
        beside = against(rows, arm, phase=phase, other=arm)
        same = pick(rows, "policies", arm)
        cost = _mean(run["probe_tokens"] / same[seed]["probe_tokens"] for seed, run in runs.items() if seed in same)
        table.append([arm, str(len(gap.gaps)), shown(gap), f"{gap.p:.2g}", shown(beside), f"{cost:.2f} ×"])
    return lines(["policy", "seeds", "to task_static", "p", f"to itself with {usual}", "tokens of probes"], table)


def _errors(rows: Sequence[Row]) -> str:
    """How far scores were from the truth where probes were read only, and what as many answers would have said."""
    table = []
    one = {"read": np.zeros((0, len(NAMES))), "answered": np.zeros((0, len(NAMES)))}
    change = dict(one)
    for row in rows:
        if row["phase"] == "probes read":
            for kind, values in row["score_errors"].items():
                error = np.array(values).reshape(-1, len(NAMES))
                one[kind] = np.concatenate([one[kind], error])
                change[kind] = np.concatenate([change[kind], error[2::2] - error[1:-1:2]])
    for name in ORDER:
        i = NAMES.index(name)
        cells = [f"{_rms(errors[kind][:, i]):.3f}" for errors in (one, change) for kind in ("read", "answered")]
        table.append([name, *cells])
    return lines(["error (RMS)", "score, read", "answered", "change in a decision, read", "answered"], table)


def _rms(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def _predictions(rows: Sequence[Row]) -> str:
    table = []
    for prediction in PREDICTIONS:
        low, high = prediction.expected
        value, came = "", "not run"
        if pick(rows, prediction.phase, prediction.arm):
            found = of(prediction, rows)
            value, came = shown(found), outcome(prediction.expected, found)
        words = f"{prediction.arm} − {prediction.other}"
        if prediction.phase != "policies":
            words = words.replace(" −", f" ({prediction.phase}) −")
        if prediction.measure is not utility:
            words += f", {MEASURES[prediction.measure]}"
        table.append([prediction.name, words, f"{low:+g} to {high:+g}", value, came])
    return lines(["prediction", "compared", "expected", "found", "outcome"], table)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
