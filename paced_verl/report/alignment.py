"""A measurement of gradient alignment as one HTML page: a verdict in words, tables, and the tokens of a question."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from paced_verl.atomic import replacing
from paced_verl.report import charts
from paced_verl.report.page import asset, templates

FEW = 20
"""Questions under which an interval over them is rough."""
FIFTHS = ("0 to .2", ".2 to .4", ".4 to .6", ".6 to .8", ".8 to 1")
Row = Mapping[str, Any]


def write_page(folder: Path, out: Path) -> None:
    """Write the page of a measurement's folder."""
    html = render(folder)
    with replacing(out) as unfinished:
        unfinished.write_text(html, encoding="utf-8")


def render(folder: Path) -> str:
    """The page's HTML. Everything that comes from the measurement is escaped."""
    numbers: dict[str, Any] = json.loads((folder / "alignment.json").read_text())
    environment = templates()
    environment.filters.update(interval=shown, number=plain)
    tokens = pq.read_table(folder / "tokens.parquet").to_pylist()
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    figures = {
        "windows": _bars(numbers["windows"], "window", window),
        "rates": _bars(numbers["pass_rates"], "fifth", fifth),
    }
    return environment.get_template("alignment.html.jinja").render(
        numbers=numbers,
        verdict=verdict(numbers),
        teachers=real(numbers),
        questions=_heat(numbers, tokens, scores),
        charts=figures,
        plotly=Markup(get_plotlyjs()),
        style=asset("page.css"),
        script=asset("page.js"),
    )


def real(numbers: Row) -> list[str]:
    """The teachers that know something."""
    nulls = set(numbers["settings"]["nulls"])
    return list(dict.fromkeys(row["teacher"] for row in numbers["teachers"] if row["teacher"] not in nulls))


def shown(interval: Row, digits: int = 2) -> str:
    """A number with half of its interval."""
    value, half = plain(interval["value"], digits), (interval["high"] - interval["low"]) / 2
    return value if math.isnan(half) else f"{value} ± {half:.{digits}f}"


def plain(value: float, digits: int = 2) -> str:
    """A number with its sign; a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:+.{digits}f}"


# What is said.


def verdict(numbers: Row) -> list[str]:
    """What the numbers say, in sentences; nothing that an interval does not carry."""
    return [*_best(numbers), *_nothing(numbers), *_outcomes(numbers), *_frontier(numbers), *_cautions(numbers)]


def _first_divergence(numbers: Row) -> str:
    return str(numbers["settings"]["divergence"][0])


def _of(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _best(numbers: Row) -> list[str]:
    divergence, known = _first_divergence(numbers), real(numbers)
    rows = [row for row in _of(numbers["teachers"], divergence=divergence) if row["teacher"] in known]
    rows = sorted(rows, key=lambda row: -_or(row["aggregate"]["value"], -math.inf))
    best = rows[0]
    said = [
        f"Under {divergence}, {best['teacher']} moves the student's logits most nearly towards success: its gradients "
        f"have a cosine of {shown(best['aggregate'])} to the ideal ones."
    ]
    if _below(best["aggregate"]):
        said = [f"Under {divergence}, every teacher moves the student away from success where it was measured."]
    if len(rows) > 1:
        gap = _gap(numbers, best["teacher"], rows[1]["teacher"], divergence)
        said.append(
            f"It is ahead of {rows[1]['teacher']} by {shown(gap)}{'' if _differs(gap) else ', which may be chance'}."
        )
    return said


def _gap(numbers: Row, first: str, second: str, divergence: str) -> Row:
    for row in _of(numbers["against"], divergence=divergence):
        if (row["first"], row["second"]) == (first, second):
            return row
        if (row["first"], row["second"]) == (second, first):
            return {"value": -row["value"], "low": -row["high"], "high": -row["low"]}
    raise ValueError(f"{first} and {second} were not compared")


def _nothing(numbers: Row) -> list[str]:
    divergence, known = _first_divergence(numbers), real(numbers)
    rows = _of(numbers["teachers"], divergence=divergence)
    best = max(
        (row for row in rows if row["teacher"] in known), key=lambda row: _or(row["aggregate"]["value"], -math.inf)
    )
    nulls = [row for row in rows if row["teacher"] not in known]
    if not nulls:
        return []
    rival = max(nulls, key=lambda row: _or(row["aggregate"]["value"], -math.inf))
    gap = _gap(numbers, best["teacher"], rival["teacher"], divergence)
    beside = f"{rival['teacher']}, which knows nothing of the problem, reaches {shown(rival['aggregate'])}"
    if _differs(gap) and gap["value"] > 0:
        return [f"Of what knows nothing the best, {beside}: {best['teacher']} is ahead by {shown(gap)}."]
    return [f"But {beside}: that the teacher knows the problem has not been shown to matter (difference {shown(gap)})."]


def _outcomes(numbers: Row) -> list[str]:
    said = []
    for row in _of(numbers["outcomes"], divergence=_first_divergence(numbers)):
        naive = row["naive_wrong"]["value"] - row["naive_correct"]["value"]
        gap = row["matched_gap"]
        if math.isnan(gap["low"]):
            continue
        words = "better on failed responses" if gap["value"] > 0 else "better on correct responses"
        found = (
            words if _differs(gap) else "no different on failed and on correct responses that can be told from chance"
        )
        said.append(
            f"{row['teacher']} points {found}: {shown(gap)} without noise and among like nodes (mean cosines, which "
            f"noise moves, differ by {plain(naive)})."
        )
    return said


def _frontier(numbers: Row) -> list[str]:
    divergence = _first_divergence(numbers)
    rows = [row for row in _of(numbers["pass_rates"], divergence=divergence) if row["teacher"] == real(numbers)[0]]
    known = [row for row in rows if not math.isnan(row["low"])]
    if len(known) < 2:
        return []
    best = max(known, key=lambda row: row["value"])
    others = [row for row in known if row is not best]
    alone = all(row["high"] < best["low"] for row in others)
    text = (
        f"By the student's pass rate, {best['teacher']} is most nearly right at {fifth(best['fifth'])}: {shown(best)}"
    )
    return [text + ("." if alone else "; intervals of other pass rates overlap with it.")]


def _cautions(numbers: Row) -> list[str]:
    said, questions = [], len(numbers["questions"])
    if questions < FEW:
        said.append(f"These are {questions} questions: intervals over so few are rough.")
    weak = [row for row in numbers["teachers"] if row["teacher"] in real(numbers) and row["reliability"] < 0.8]
    if weak:
        names = ", ".join(dict.fromkeys(row["teacher"] for row in weak))
        said.append(f"Halves of the visits agree little about {names} (reliability below .8): more visits would help.")
    if numbers["truncated"]:
        what = "count as failures" if numbers["settings"]["truncated"] == "fail" else "are left out"
        said.append(f"{numbers['truncated']:,} responses reached the length limit; they {what}.")
    return said


def _differs(interval: Row) -> bool:
    return bool(interval["low"] > 0 or interval["high"] < 0)


def _below(interval: Row) -> bool:
    return bool(interval["high"] < 0)


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value


# What is drawn.


def window(number: int) -> str:
    """A depth window in positions from 1."""
    first = 50 * (2**number - 1)
    return f"{first + 1} to {first + 50 * 2**number}"


def fifth(number: int) -> str:
    """A fifth of the pass rate."""
    return FIFTHS[number]


def _bars(rows: Sequence[Row], by: str, name: Any) -> charts.Chart:
    """The aggregate of each teacher in every part, with 95 % intervals."""
    traces: dict[str, list[Row]] = {}
    for row in rows:
        traces.setdefault(f"{row['teacher']}, {row['divergence']}", []).append(row)
    return charts.with_intervals(
        {
            trace: [(name(row[by]), row["value"], _or((row["high"] - row["low"]) / 2, 0.0)) for row in part]
            for trace, part in traces.items()
        },
        "cosine to the ideal gradient",
    )


def _heat(numbers: Row, tokens: Sequence[Row], scores: Sequence[Row]) -> list[dict[str, Any]]:
    """By question, its nodes: the text before, and the tokens that were tried with everything known of them."""
    divergence, teacher = _first_divergence(numbers), real(numbers)[0]
    score = {row["node"]: row for row in scores if (row["teacher"], row["divergence"]) == (teacher, divergence)}
    by_node: dict[int, list[Row]] = {}
    for token in tokens:
        by_node.setdefault(token["node"], []).append(token)
    questions: dict[int, list[dict[str, Any]]] = {}
    for number, candidates in by_node.items():
        known = score.get(number)
        questions.setdefault(candidates[0]["question"], []).append(
            {
                "before": candidates[0]["before"],
                "outcome": known["outcome"] if known else None,
                "cosine": known["cosine"] if known else math.nan,
                "tokens": sorted(candidates, key=lambda row: -row["p"]),
            }
        )
    return [
        numbers["questions"][question] | {"nodes": sorted(nodes, key=lambda node: len(node["before"]))}
        for question, nodes in sorted(questions.items())
    ]
