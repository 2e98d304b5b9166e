"""A page's section on a run that shares its tokens among capabilities: what was decided, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from paced_verl.capability.headroom import Transfer, hindsight
from paced_verl.capability.optimum import Aim
from paced_verl.capability.reward import protected_capabilities
from paced_verl.report import charts
from paced_verl.report.run import Run
from paced_verl.report.verdict import plus
from paced_verl.statistics import NORMAL_95

KINDS = {"trained": "responses that train", "teacher": "teacher, read and written", "probe": "answers to probes"}
Row = dict[str, Any]


class Cell(NamedTuple):
    """An entry of the matrix of gains and spillovers, in points of a score at 0 for all tokens of a decision."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether its sign is."""
        return self.low > 0 or self.high < 0


def of(run: Run) -> dict[str, Any] | None:
    """What the section shows; ``None``: the run has decided nothing."""
    if not run.decisions:
        return None
    names = list(dict.fromkeys(row["capability"] for row in run.decisions))
    return {
        "sentences": list(sentences(run)),
        "names": names,
        "scores": {name: way(run, name) for name in names},
        "matrix": matrix(run, names),
        "tokens": tokens(run),
        "charts": [
            ("capability-shares", "Shares of the tokens: planned (lines) and realised (points)", _shares(run, names)),
            ("capability-scores", "Scores of the probes with 95 % intervals", _scores(run, names)),
            ("capability-reward", "Reward of each decision: predicted with 95 % intervals, and realised", _reward(run)),
            ("capability-budget", "Tokens by kind, summed over the steps", _budget(run)),
        ],
    }


def sentences(run: Run) -> list[str]:
    """The verdict, in words."""
    rows = _by_decision(run)
    first, last = rows[0], rows[-1]
    policies = ", then ".join(dict.fromkeys(decision[0]["policy"] for decision in rows))
    said = [f"{len(rows)} decision{'s' if len(rows) > 1 else ''} by the policy {policies} closed."]
    gains = [(row["after"] - begun["before"], row, begun) for begun, row in zip(first, last, strict=True)]
    known = [gain for gain, *_ in gains if math.isfinite(gain)]
    if len(known) < len(gains):
        said.append("There are no probes, so what the decisions have brought is not known from them.")
    else:
        worth = sum(row["requirement"] * gain for gain, row, _ in gains)
        error = math.sqrt(sum(row["requirement"] ** 2 * _apart(begun, row) ** 2 for _, row, begun in gains))
        said.append(
            f"By the requirement the scores have changed by {plus(worth)} points ({_points(worth, error)}): "
            + ", ".join(f"{row['capability']} {plus(g)} ({_points(g, _apart(old, row))})" for g, row, old in gains)
            + "."
        )
        if lost := [row["capability"] for gain, row, begun in gains if gain + NORMAL_95 * _apart(begun, row) < 0]:
            said.append(f"Worse than at the start, as far as probes can tell: {', '.join(lost)}.")
    moved = max(abs(row["planned"] - row["requirement"]) for decision in rows for row in decision)
    said.append(
        "The planned shares were the requirement throughout."
        if moved < 0.005
        else f"The planned shares were up to {100 * moved:.0f} points from the requirement."
    )
    off = max((abs(row["planned"] - share) for decision in rows for row, share in _realised(decision)), default=0.0)
    said.append(f"Realised shares of the tokens were at most {100 * off:.0f} points off the planned ones.")
    predicted = [d[0] for d in rows if math.isfinite(d[0]["predicted"]) and math.isfinite(d[0]["reward"])]
    if predicted:
        within = sum(abs(row["reward"] - row["predicted"]) <= NORMAL_95 * row["predicted_se"] for row in predicted)
        said.append(
            f"Of {len(predicted)} predicted rewards {within} lay within the policy's own 95 % interval, which holds "
            "what the model does not know, and not the noise of the probes."
        )
    said += _in_hindsight(run, rows)
    left, budget = run.series("paced/budget/left"), run.setting("paced.capability.budget")
    if left and budget:
        burnt = budget - left[max(left)]
        said.append(f"Of a budget of {budget:,} tokens {burnt:,.0f} were trained on ({burnt / budget:.0%}).")
    return said


def _in_hindsight(run: Run, rows: Sequence[Sequence[Row]]) -> list[str]:
    """Headroom and regret, where a policy has said what tokens do."""
    if not run.transfer:
        return []
    names = [row["capability"] for row in rows[0]]
    found = {(row["to"], row["by"]): row for row in run.transfer}
    mean, se = (np.array([[found[to, by][key] for by in names] for to in names]) for key in ("mean", "se"))
    r = np.array([row["requirement"] for row in rows[0]])
    protect = run.setting("paced.capability.protect", {"top": 3, "beta": 0.5})
    aim = Aim(
        r,
        static=r,
        beta=protect["beta"],
        protected=protected_capabilities(r, protect["top"]),
        floor=run.setting("paced.capability.floor", 0.02),
    )
    tokens = np.array([[row["realised_tokens"] for row in decision] for decision in rows]) / run.transfer[0]["tokens"]
    covariance = np.stack([np.diag(row**2) for row in se])
    back = hindsight(Transfer(mean, covariance), np.array([row["before"] for row in rows[0]]), tokens, aim)
    best = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, back.best, strict=True))
    gained, lost = (f"{plus(m)} points ({plus(low)} to {plus(high)})" for m, low, high in (back.headroom, back.regret))
    return [
        f"Headroom, by what the policy believes now: the best fixed mix ({best}) would have gained {gained} beyond the "
        f"requirement's own. Regret: it would have gained {lost} beyond what was decided. The intervals take the "
        "entries of the matrix for independent, and the mix was chosen by the same matrix."
    ]


def way(run: Run, name: str) -> list[tuple[float, float]]:
    """A capability's scores with half of their 95 % intervals: before the first decision, and after each."""
    rows = [row for row in run.decisions if row["capability"] == name]
    points = [(rows[0]["before"], rows[0]["before_se"]), *((row["after"], row["after_se"]) for row in rows)]
    return [(score, NORMAL_95 * se) for score, se in points]


def matrix(run: Run, names: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """By capability whose score moves, what tokens spent on each do to it; empty where no policy knows that."""
    entries = {
        (row["to"], row["by"]): Cell(
            row["mean"], row["mean"] - NORMAL_95 * row["se"], row["mean"] + NORMAL_95 * row["se"]
        )
        for row in run.transfer
    }
    return [(to, [entries[to, by] for by in names]) for to in names] if entries else []


def tokens(run: Run) -> list[tuple[str, float]]:
    """Tokens until the last step, by what they were spent on, and by capability in all."""
    kinds = [(words, run.series(f"paced/budget/{kind}")) for kind, words in KINDS.items()]
    names = dict.fromkeys(row["capability"] for row in run.decisions)
    each = [(f"{name}, all kinds", run.series(f"paced/capability/{name}/tokens")) for name in names]
    return [(words, series[max(series)]) for words, series in (*kinds, *each) if series]


def _by_decision(run: Run) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in run.decisions:
        found.setdefault(row["decision"], []).append(row)
    return [found[decision] for decision in sorted(found)]


def _realised(decision: Sequence[Row]) -> list[tuple[Row, float]]:
    """Rows with their shares of the tokens that were trained on; none where nothing was."""
    total = sum(row["realised_tokens"] for row in decision)
    return [(row, row["realised_tokens"] / total) for row in decision] if total else []


def _apart(begun: Row, ended: Row) -> float:
    return math.hypot(begun["before_se"], ended["after_se"])


def _points(value: float, se: float) -> str:
    return f"{plus(value - NORMAL_95 * se)} to {plus(value + NORMAL_95 * se)}"


def _shares(run: Run, names: Sequence[str]) -> charts.Chart:
    found = _by_decision(run)
    planned: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    realised: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for decision in found:
        for row in decision:
            planned[row["capability"]].append((row["step"], row["planned"], 0.0))
        for row, share in _realised(decision):
            realised[row["capability"]].append((row["step"], share))
    return charts.by_step(planned, "share of the tokens", realised, tickformat=".0%", rangemode="tozero")


def _scores(run: Run, names: Sequence[str]) -> charts.Chart | None:
    """At the first step of each decision, and of the last one's outcome where it would have had a next."""
    begun = [decision[0]["step"] for decision in _by_decision(run)]
    every = begun[-1] - begun[-2] if len(begun) > 1 else run.setting("paced.capability.every_steps", 1)
    steps = [*begun, max(begun[-1], min(begun[-1] + every, run.step + 1))]
    points = {
        name: [(step, *at) for step, at in zip(steps, way(run, name), strict=True) if math.isfinite(at[0])]
        for name in names
    }
    return charts.by_step(points, "score", tickformat=".2f") if any(points.values()) else None


def _reward(run: Run) -> charts.Chart | None:
    first = [decision[0] for decision in _by_decision(run)]
    predicted = [
        (r["step"], r["predicted"], NORMAL_95 * r["predicted_se"]) for r in first if math.isfinite(r["predicted"])
    ]
    realised = [(r["step"], r["reward"]) for r in first if math.isfinite(r["reward"])]
    return charts.by_step({"predicted": predicted}, "reward", {"realised": realised}) if predicted else None


def _budget(run: Run) -> charts.Chart | None:
    names = {f"paced/budget/{kind}": words for kind, words in {**KINDS, "left": "left of the budget"}.items()}
    return charts.lines(run, names, "tokens", rangemode="tozero") if any(run.series(name) for name in names) else None
