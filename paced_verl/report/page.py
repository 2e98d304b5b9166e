"""A run as one HTML file that needs nothing else: what happened in words, charts, prompts, settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from paced_verl.atomic import replacing
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.report import capability, charts, movement, tokens, verdict
from paced_verl.report.accuracy import moments, problems, samples_per_problem
from paced_verl.report.health import TAIL_LIMIT, examine
from paced_verl.report.run import Run, status
from paced_verl.report.summary import comparisons_of, key_moments
from paced_verl.report.texts import Texts, read_texts

STORIES = 5  # prompts of each kind that are shown with their text
LONGEST = 2000  # characters of a text that are shown


class Figure(NamedTuple):
    """A chart and what stands above it."""

    id: str
    caption: str
    chart: charts.Chart


class Story(NamedTuple):
    """A prompt that moved."""

    path: movement.Path
    text: str | None
    response: str | None
    correct: bool | None


def write_page(runs: Sequence[Run], out: Path) -> None:
    """Write the page of the first run, the others beside it."""
    html = render(runs)
    with replacing(out) as unfinished:
        unfinished.write_text(html, encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """The page's HTML. Everything that comes from a run is escaped: data, never markup."""
    environment = templates()
    environment.filters.update(percent=verdict.percent, interval=verdict.interval, plus=verdict.plus)
    environment.filters.update(cut=cut, code=code, short=charts.short)
    parts = _parts(runs)
    figures = {f.id: f.chart for part in parts.values() if isinstance(part, dict) for f in part.get("figures", [])}
    return environment.get_template("page.html.jinja").render(
        **parts, charts=figures, plotly=Markup(get_plotlyjs()), style=asset("page.css"), script=asset("page.js")
    )


def templates() -> Environment:
    """The pages' templates: what they are given is data, never markup."""
    environment = Environment(
        loader=PackageLoader("paced_verl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {}  # charts are drawn in the page's order
    return environment


def cut(text: str) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


def code(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    parts = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)


def asset(name: str) -> Markup:
    """A file of the pages, as it is."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _parts(runs: Sequence[Run]) -> dict[str, Any]:
    first, *_ = runs
    return {
        "runs": runs,
        "first": first,
        "state": status(first),
        "warnings": _warnings(runs),
        "standing": verdict.standing(first),
        "worked": _worked(runs),
        "budget": _budget(runs),
        "capability": _capability(first),
        "learned": _learned(first),
        "health": _health(first),
        "settings": _settings(first),
    }


def _warnings(runs: Sequence[Run]) -> list[str]:
    """Of all runs, each under its name where there are several."""
    return [f"{run.name}: {words}" if len(runs) > 1 else words for run in runs for words in run.warnings]


def _worked(runs: Sequence[Run]) -> dict[str, Any]:
    first, *others = runs
    counter = tokens.common_counter(runs)
    by_run = {run.name: moments(run, counter, problems(run)) for run in runs}
    figures = []
    if any(by_run.values()):
        shown = charts.accuracy(by_run, "step", "training steps", first)
        figures.append(Figure("accuracy-steps", "Held-out accuracy by training steps, 95 % intervals", shown))
        if counter:
            spent = charts.accuracy(by_run, "tokens", counter.label)
            figures.append(Figure("accuracy-tokens", "… and by tokens spent", spent))
    return {
        "headline": verdict.headline(first),
        "sentences": [
            *filter(None, [verdict.learned(first)]),
            *(f"{run.name}: {verdict.standing(run)}" for run in others if status(run).state != "finished"),
            *(words for run in others for words in verdict.beside(first, run)),
        ],
        "key": {run.name: key_moments(run) for run in runs},
        "counter": counter.label if counter else "",
        "comparisons": {run.name: comparisons_of(first, run) for run in others},
        "problems": sum(problems(first).values()),
        "samples": samples_per_problem(first),
        "figures": figures,
    }


def _budget(runs: Sequence[Run]) -> dict[str, Any]:
    first, *_ = runs
    kinds = {run.name: tokens.by_kind(run) for run in runs}
    counted = {name: found for name, found in kinds.items() if set(found) & set(tokens.KINDS)}
    total = sum(counted.get(first.name, {}).values())
    saved = tokens.saved(first)
    figures = [Figure("budget", "Tokens by who read or wrote them", charts.budget(counted))] if counted else []
    return {
        "sentence": verdict.spent(tokens.shares(kinds[first.name]), saved.tokens, total, tokens.trained(first)),
        "kinds": [(tokens.label(kind), [run.get(kind) for run in kinds.values()]) for kind in tokens.KINDS],
        "counted": bool(counted),
        "any": any(kinds.values()),
        "names": list(kinds),
        "saved": {run.name: tokens.saved(run) for run in runs},
        "teacher": {run.name: sum(run.series("paced/teacher/tokens").values()) for run in runs},
        "seconds": {words: verdict.duration(seconds) for words, seconds in tokens.seconds(first).items()},
        "figures": figures,
    }


def _capability(run: Run) -> dict[str, Any] | None:
    found = capability.of(run)
    return found and found | {"figures": [Figure(*figure) for figure in found["charts"] if figure[-1] is not None]}


def _learned(run: Run) -> dict[str, Any]:
    tables, complete = run.tables()
    found: dict[str, Any] = {"figures": _learning_figures(run, tables), "complete": complete, "moments": list(tables)}
    found["teacher"] = _two_way_with_teacher(run)
    found["groups"] = movement.GROUPS
    if len(tables) < 2:
        return found | {"flow": None}
    first, *_, last = tables.values()
    risen, fallen = movement.risen(tables, STORIES), movement.fallen(tables, STORIES)
    texts = read_texts(run, [*risen, *fallen])
    return found | {
        "flow": movement.two_way(first, last).tolist(),
        "fell": int(movement.fell(first, last).sum()),
        "by_chance": movement.falls_by_chance(first, last),
        "risen": [_story(prompt, tables, texts) for prompt in risen],
        "fallen": [_story(prompt, tables, texts) for prompt in fallen],
        "missing": texts.missing if risen or fallen else "",
    }


def _learning_figures(run: Run, tables: dict[int, PassRateTable]) -> list[Figure]:
    figures = []
    if any(table.samples.any() for table in tables.values()):
        samples = run.setting("paced.pass_rate.samples", 8)
        kernel = charts.kernel_of(run, _fitted(run), next(iter(tables.values())))
        caption = "Pass rates of the training prompts: share at each rate, the frontier (.2 to .8) shaded"
        caption += ", and beside it the weight that a rate gets (mean 1)" if kernel else ""
        figures.append(Figure("pass-rates", caption, charts.pass_rates(tables, kernel, samples)))
    if run.series("paced/pass_rate/low"):
        figures.append(Figure("groups", "Hopeless, frontier and mastered prompts, step by step", charts.groups(run)))
    return figures


def _fitted(run: Run) -> dict[str, Any]:
    """The kernel's numbers that the last checkpoint says were fitted."""
    files = [folder / "state.json" for folder in run.folders.values() if (folder / "state.json").is_file()]
    return json.loads(files[-1].read_text())["fitted"] if files else {}


def _two_way_with_teacher(run: Run) -> list[list[int]] | None:
    """Prompts by the teacher's group (rows) and the student's (columns), of the last checkpoint that knows both."""
    for folder in reversed(run.folders.values()):
        student, teacher = folder / "pass_rates.parquet", folder / "teacher_pass_rates.parquet"
        if student.is_file() and teacher.is_file():
            return movement.two_way(PassRateTable.load(teacher), PassRateTable.load(student)).tolist()
    return None


def _story(prompt: int, tables: dict[int, PassRateTable], texts: Texts) -> Story:
    response, correct = texts.responses.get(prompt, (None, None))
    return Story(movement.path(prompt, tables), texts.prompts.get(prompt), response, correct)


class Panel(NamedTuple):
    """A chart of metrics over the steps.

    Attributes:
        id: Of the figure.
        caption: Above it.
        title: Of its y axis.
        names: Metrics, and what the legend calls them.
        axis: More of plotly's keys of the y axis.
    """

    id: str
    caption: str
    title: str
    names: dict[str, str]
    axis: dict[str, Any]


_PANELS = (
    Panel(
        "weights",
        "Effective share and zero share of the prompts",
        "share of prompts",
        {"paced/weight/ess": "effective share", "paced/weight/zero_share": "weigh 0"},
        {"range": [0, 1]},
    ),
    Panel(
        "divergence",
        "Divergence per token on each stage's responses",
        "nats per token",
        {"paced/divergence/forward_kl": "forward KL", "paced/divergence/reverse_kl": "reverse KL"},
        {"type": "log", "dtick": "D2"},
    ),
    Panel(
        "tail",
        "Teacher mass outside its top k (dashed: healthy below)",
        "probability",
        {"paced/divergence/tail_mass": "tail mass"},
        {"rangemode": "tozero"},
    ),
    Panel(
        "staleness",
        "Age of the pass rates",
        "steps",
        {"paced/sampler/staleness": "staleness"},
        {"rangemode": "tozero"},
    ),
    Panel(
        "gradient",
        "Gradient norm (dashed: where it is clipped)",
        "norm",
        {"actor/grad_norm": "gradient norm"},
        {"rangemode": "tozero"},
    ),
)


def _health(run: Run) -> dict[str, Any]:
    findings = examine(run)
    limits = {"tail": TAIL_LIMIT, "gradient": run.setting("actor_rollout_ref.actor.grad_clip")}
    figures = [
        Figure(
            panel.id,
            panel.caption,
            charts.lines(run, panel.names, panel.title, limits.get(panel.id), **panel.axis),
        )
        for panel in _PANELS
        if any(run.series(metric) for metric in panel.names)
    ]
    unhealthy = [finding.title.lower() for finding in findings if not finding.ok]
    return {
        "unhealthy": unhealthy,
        "findings": findings,
        "sentence": verdict.healthy(unhealthy, len(findings)),
        "figures": figures,
    }


_KEYS = (
    "actor_rollout_ref.model.path", "distillation.teacher_models", "data.train_files", "data.val_files",
    "data.train_batch_size", "data.train_max_samples", "data.max_prompt_length", "data.max_response_length",
    "actor_rollout_ref.rollout.n", "actor_rollout_ref.actor.optim.lr", "actor_rollout_ref.actor.grad_clip",
    "trainer.v1.trainer_mode", "trainer.default_local_dir",
)  # fmt: skip


def _settings(run: Run) -> dict[str, Any]:
    return {
        "keys": [(key, value) for key in _KEYS if (value := run.setting(key)) is not None],
        "paced": json.dumps(run.setting("paced", {}), indent=2, ensure_ascii=False),
        "schedule": run.record.get("schedule", []),
        "versions": {name: found for name, found in run.record.get("versions", {}).items() if found},
        "attempts": run.record.get("attempts", []),
        "prompts": run.record.get("prompts"),
    }
