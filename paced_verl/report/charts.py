"""The page's charts, as plotly figures in JSON. Colours of text and grid are the page's, which is light or dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from paced_verl.errors import PacedError
from paced_verl.pacing.kernel import Kernel, fit_prior
from paced_verl.pacing.pass_rates import HIGH, LOW, PassRateTable
from paced_verl.report.accuracy import Moment
from paced_verl.report.movement import shares
from paced_verl.report.run import Run
from paced_verl.report.tokens import KINDS, label

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ef4444", "#64748b")
STUDENT, ESTIMATE, TEACHER = "#3b82f6", "#f59e0b", "#10b981"
KIND_COLOURS = dict(
    zip(
        KINDS,
        ("#93c5fd", STUDENT, "#fcd34d", ESTIMATE, "#6ee7b7", TEACHER, "#cbd5e1", "#94a3b8", "#f9a8d4", "#db2777"),
        strict=True,
    )
)
GROUP_COLOURS = {"low": "#ef4444", "frontier": "#f59e0b", "high": "#10b981"}
POINTS = 1000  # of a line: more than a screen has columns
LEVELS = 16  # of pass rates, k of K, that a heat map shows one by one

Chart = dict[str, Any]


def _figure(**layout: Any) -> go.Figure:
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": None}
    figure = go.Figure()
    figure.update_layout(
        template="none", height=320, margin={"l": 56, "r": 12, "t": 8, "b": 44}, legend=legend, hovermode="x unified"
    )
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", **layout)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True, title_standoff=10)
    return figure


def _chart(figure: go.Figure) -> Chart:
    """Plain JSON, in which NaN is null."""
    return json.loads(figure.to_json())


def thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``POINTS`` points, evenly spaced, the first and the last among them."""
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS), dtype=int))
    return [steps[place] for place in places], [values[place] for place in places]


def _line(figure: go.Figure, points: Mapping[int, float], name: str, colour: str, **line: Any) -> None:
    steps, values = thin(list(points), list(points.values()))
    figure.add_scatter(x=steps, y=values, name=name, mode="lines", line={"color": colour, "width": 2, **line})


def _shade_stages(figure: go.Figure, run: Run) -> None:
    if len(run.stages) < 2:
        return
    for stage, first, last in run.stages:
        shade = {"fillcolor": "#64748b", "opacity": 0.08 * (stage % 2), "line_width": 0, "layer": "below"}
        place = {"annotation_position": "bottom left", "annotation_font_size": 11}
        figure.add_vrect(x0=first - 0.5, x1=last + 0.5, annotation_text=f"stage {stage}", **place, **shade)


def short(name: str) -> str:
    """A run's name as a legend has room for it: long ones without their middle."""
    return name if len(name) <= 28 else f"{name[:13]}…{name[-13:]}"


def accuracy(runs: Mapping[str, Sequence[Moment]], by: str, title: str, shown: Run | None = None) -> Chart:
    """Held-out accuracy with 95 % intervals over ``by`` (``step`` or ``tokens``) of a :class:`Moment`."""
    figure = _figure(yaxis={"title": "held-out accuracy", "tickformat": ".0%"}, xaxis={"title": title})
    for i, (name, moments) in enumerate(runs.items()):
        half = [moment.accuracy.interval[1] - moment.accuracy.mean for moment in moments]
        means, colour = [moment.accuracy.mean for moment in moments], COLOURS[i % len(COLOURS)]
        bars = {"type": "data", "array": half, "thickness": 1.2, "width": 3}
        style = {"line": {"color": colour, "width": 2}, "marker": {"size": 7}, "mode": "lines+markers"}
        figure.add_scatter(x=[getattr(m, by) for m in moments], y=means, name=short(name), error_y=bars, **style)
    if shown is not None:
        _shade_stages(figure, shown)
    figure.update_layout(showlegend=len(runs) > 1)
    return _chart(figure)


def with_intervals(traces: Mapping[str, Sequence[tuple[str, float, float]]], title: str) -> Chart:
    """Numbers by category, each with half of its 95 % interval, a colour a trace."""
    figure = _figure(yaxis={"title": title}, hovermode="closest")
    for i, (name, points) in enumerate(traces.items()):
        bars = {"type": "data", "array": [half for *_, half in points], "thickness": 1.2, "width": 3}
        style = {"mode": "markers", "marker": {"size": 8, "color": COLOURS[i % len(COLOURS)]}}
        places, values = [place for place, *_ in points], [value for _, value, _ in points]
        figure.add_scatter(x=places, y=values, name=short(name), error_y=bars, **style)
    figure.update_xaxes(type="category")
    return _chart(figure)


def budget(tokens: Mapping[str, Mapping[str, float]]) -> Chart:
    """Tokens by kind, a bar a run."""
    figure = _figure(barmode="stack", xaxis={"title": "tokens"}, hovermode="closest")
    names = list(tokens)
    for kind in [kind for kind in KINDS if any(kind in run for run in tokens.values())]:
        counts = [tokens[name].get(kind, 0.0) for name in names]
        colour = {"color": KIND_COLOURS[kind]}
        figure.add_bar(y=names, x=counts, name=label(kind), orientation="h", marker=colour)
    figure.update_layout(
        height=190 + 46 * len(names),
        yaxis={"autorange": "reversed", "tickvals": names, "ticktext": [short(name) for name in names]},
        legend_traceorder="normal",
    )
    return _chart(figure)


def pass_rates(tables: Mapping[int, PassRateTable], kernel: Kernel | None, samples: int) -> Chart:
    """Heat map: share of prompts by pass rate and moment, the frontier shaded; beside it w(p), on the same axis."""
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.72, 0.28], horizontal_spacing=0.03)
    figure.update_layout(_figure().layout)
    levels = samples if samples <= LEVELS else 10
    columns = [f"after {step}" if step else "start" for step in tables]
    z = np.array([shares(table, levels) for table in tables.values()]).T
    scale = [[0, "rgba(59,130,246,0.04)"], [1, "rgba(59,130,246,0.85)"]]
    bar = {
        "tickformat": ".0%",
        "orientation": "h",
        "y": -0.22,
        "yanchor": "top",
        "x": 0.36,
        "len": 0.72,
        "thickness": 10,
    }
    hover = "%{x}<br>pass rate %{y:.2f}: %{z:.1%} of the prompts<extra></extra>"
    text = {"hovertemplate": hover, "texttemplate": "%{z:.0%}" if len(tables) <= 8 else None}
    figure.add_heatmap(x=columns, y=np.arange(levels + 1) / levels, z=z, colorscale=scale, zmin=0, colorbar=bar, **text)
    if kernel is not None and (last := _seen(tables)) is not None:
        rates, weights = _weight_curve(kernel, last, samples)
        figure.update_xaxes(range=[0, 1.1 * max(weights)], col=2)
        line = {"color": "#f59e0b", "width": 2.5}
        figure.add_scatter(x=weights, y=rates, mode="lines", line=line, name="w(p)", showlegend=False, row=1, col=2)
    figure.add_hrect(y0=LOW, y1=HIGH, fillcolor="#f59e0b", opacity=0.16, line_width=0, layer="below", col="all", row=1)
    for edge in (LOW, HIGH):
        figure.add_hline(y=edge, line={"color": "#f59e0b", "width": 1.5}, col="all", row=1)
    figure.update_yaxes(range=[-0.5 / levels, 1 + 0.5 / levels], tickvals=[0, LOW, 0.5, HIGH, 1], automargin=True)
    figure.update_yaxes(title="pass rate p", title_standoff=10, col=1)
    figure.update_yaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(type="category", title="training steps done", showgrid=False, col=1)
    figure.update_xaxes(title="weight", col=2)
    figure.update_layout(height=430, hovermode="closest", margin={"l": 56, "r": 12, "t": 8, "b": 96})
    return _chart(figure)


def _seen(tables: Mapping[int, PassRateTable]) -> PassRateTable | None:
    return next((table for table in reversed(list(tables.values())) if table.samples.any()), None)


def _weight_curve(kernel: Kernel, table: PassRateTable, samples: int) -> tuple[Any, Any]:
    """w̃ over pass rates: a curve where it depends on p alone, at k of K where the estimate makes it depend on K."""
    seen = table.samples > 0
    mean = float(kernel(table.successes[seen], table.samples[seen]).mean()) or 1.0
    if kernel.estimate == "posterior":
        return np.arange(samples + 1) / samples, kernel(np.arange(samples + 1), samples) / mean
    rates = np.linspace(0, 1, 101)
    return rates, kernel.of_rate(rates) / mean


def kernel_of(run: Run, fitted: Mapping[str, Any], table: PassRateTable | None) -> Kernel | None:
    """The run's kernel; ``None`` where it is not known, as one that is registered elsewhere.

    Args:
        run: Its settings under ``paced.weight``.
        fitted: What a checkpoint says was fitted: alpha, beta, prior.
        table: To fit the prior to where no checkpoint has it yet.
    """
    weight = dict(run.setting("paced.weight", {}))
    if not weight:
        return None
    names = {
        name: weight[name] for name in ("alpha", "beta", "low", "high", "estimate") if weight.get(name) is not None
    }
    prior = fitted.get("prior") or weight.get("prior")
    if prior is None:
        prior = fit_prior(table.successes, table.samples) if table is not None and table.samples.any() else (1.0, 1.0)
    exponents = {name: fitted[name] for name in ("alpha", "beta") if name in fitted}
    try:
        return Kernel(name=weight.get("kernel", "beta"), **(names | exponents), prior=tuple(prior))
    except PacedError:
        return None


def groups(run: Run) -> Chart:
    """Shares of hopeless, frontier and mastered prompts over the steps, stacked."""
    figure = _figure(yaxis={"title": "share of prompts", "tickformat": ".0%", "range": [0, 1]}, xaxis={"title": "step"})
    names = {"low": "hopeless, p < .2", "frontier": "frontier", "high": "mastered, p > .8"}
    for key, name in names.items():
        points = run.series(f"paced/pass_rate/{key}")
        steps, values = thin(list(points), list(points.values()))
        style = {"line": {"color": GROUP_COLOURS[key], "width": 1}, "mode": "lines", "stackgroup": "all"}
        figure.add_scatter(x=steps, y=values, name=name, **style)
    _shade_stages(figure, run)
    return _chart(figure)


def lines(run: Run, names: Mapping[str, str], title: str, limit: float | None = None, **axis: Any) -> Chart:
    """Metrics over the steps, by name and what the legend says; ``limit`` is a dashed line."""
    figure = _figure(yaxis={"title": title, **axis}, xaxis={"title": "step"})
    for colour, (name, words) in zip(COLOURS, names.items(), strict=False):
        if points := run.series(name):
            _line(figure, points, words, colour)
    _shade_stages(figure, run)
    if limit is not None:
        figure.add_hline(y=limit, line={"color": "#64748b", "width": 1, "dash": "dash"})
    figure.update_layout(showlegend=len(figure.data) > 1, height=260)
    return _chart(figure)


def by_step(
    traces: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    **axis: Any,
) -> Chart:
    """Lines of (step, value, half of its 95 % interval), and points (step, value) in the colour of their place."""
    figure = _figure(yaxis={"title": title, **axis}, xaxis={"title": "step"}, hovermode="closest")
    for i, (name, line) in enumerate(traces.items()):
        style = {"line": {"color": COLOURS[i % len(COLOURS)], "width": 2}, "mode": "lines+markers"}
        halves = [half for *_, half in line]
        bars = {"type": "data", "array": halves, "thickness": 1.2, "width": 3} if any(halves) else None
        figure.add_scatter(x=[p[0] for p in line], y=[p[1] for p in line], name=short(name), error_y=bars, **style)
    for i, (name, found) in enumerate((points or {}).items()):
        own = name not in traces
        colour = COLOURS[(i + own) % len(COLOURS)]
        marker = {"color": colour, "size": 9, "symbol": "diamond-open"}
        label = short(name) if own else f"{short(name)}, realised"
        figure.add_scatter(x=[p[0] for p in found], y=[p[1] for p in found], name=label, mode="markers", marker=marker)
    return _chart(figure)
