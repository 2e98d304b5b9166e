"""A run as numbers: what ``paced-verl report --json`` prints, and what the page says in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from paced_verl.report.accuracy import Comparison, Moment, compare, moments, problems, samples_per_problem
from paced_verl.report.health import clip_share, examine
from paced_verl.report.movement import GROUPS, falls_by_chance, fell, two_way
from paced_verl.report.run import Run, status
from paced_verl.report.tokens import by_kind, common_counter, saved
from paced_verl.statistics import Estimate, difference, paired


def summarise(run: Run) -> dict[str, Any]:
    """What a run did; parts that its files say nothing of are empty or ``None``."""
    return {
        "status": dataclasses.asdict(status(run)) | {"step": run.step, "of": run.total},
        "accuracy": _accuracy(run),
        "pass_rate_histograms": {f"after_{done}_steps": t.summary()["histogram"] for done, t in run.pass_rates.items()},
        "pass_rate_means": {f"after_{done}_steps": t.summary()["mean"] for done, t in run.pass_rates.items()},
        "pass_rate_change": None if (change := pass_rate_change(run)) is None else _numbers(change),
        "movement": _movement(run),
        "stages": _stages(run),
        "tokens": by_kind(run),
        "teacher_tokens": sum(run.series("paced/teacher/tokens").values()),
        "teacher_tokens_saved": saved(run).tokens,
        "rows_not_sent_to_the_teacher": saved(run).rows,
        "targets_skipped": sum(run.series("paced/targets/skipped").values()),
        "seconds_estimating_pass_rates": sum(run.series("paced/pass_rate/seconds").values()),
        "seconds_in_steps": sum(run.series("timing_s/step").values()),
        "clip_share": clip_share(run),
        "unhealthy": {finding.metric: finding.found for finding in examine(run) if not finding.ok},
        "warnings": run.warnings,
    }


def summarise_all(runs: Sequence[Run]) -> dict[str, Any]:
    """Every run by name, and the first beside each of the others."""
    first, *others = runs
    comparisons = {run.name: [_comparison(each) for each in comparisons_of(first, run)] for run in others}
    return {"runs": {run.name: summarise(run) for run in runs}, f"{first.name} minus": comparisons}


def in_json(numbers: Any) -> str:
    """As JSON, in which what is not known is null."""
    return json.dumps(_without_nan(numbers), indent=1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def comparisons_of(first: Run, other: Run) -> list[Comparison]:
    """Two runs at equal steps, and at equal tokens where both counted the same."""
    counter = common_counter([first, other])
    return compare(*(moments(run, counter, problems(run)) for run in (first, other)))


def key_moments(run: Run) -> dict[str, Moment]:
    """``before`` (the first validation), ``between`` (nearest to the end of stage 1, if there are more), ``after``."""
    found = moments(run, common_counter([run]), problems(run))
    if not found:
        return {}
    ends = [last for _, _, last in run.stages]
    between = {"between": min(found, key=lambda moment: abs(moment.step - ends[0]))} if ends[1:] else {}
    return {"before": found[0], **between, "after": found[-1]}


def gain(run: Run) -> Estimate | None:
    """Held-out accuracy after minus before; its error is that of different problems, so it is rather too large."""
    found = key_moments(run)
    if not found or found["before"].step == found["after"].step:
        return None
    return difference(found["after"].accuracy, found["before"].accuracy)


def pass_rate_change(run: Run) -> Estimate | None:
    """Pass rates of the training prompts, last estimate minus first, paired; ``None`` without two estimates of all."""
    if len(run.pass_rates) < 2 or not run.measures_all:
        return None
    first, *_, last = run.pass_rates.values()
    both = (first.samples > 0) & (last.samples > 0)
    return paired(last.rates()[both], first.rates()[both]) if both.any() else None


def _accuracy(run: Run) -> dict[str, Any]:
    found, units, change = key_moments(run), problems(run), gain(run)
    if not found:
        return {}
    return {
        **{when: moment.accuracy.mean for when, moment in found.items()},
        "intervals": {when: moment.accuracy.interval for when, moment in found.items()},
        "gain": None if change is None else _numbers(change),
        "problems": sum(units.values()) or None,
        "samples_per_problem": samples_per_problem(run),
        "by_step": run.accuracy(),
    }


def _movement(run: Run) -> dict[str, Any] | None:
    tables, complete = run.tables()
    if len(tables) < 2:
        return None
    first, *_, last = tables.values()
    return {
        "groups": list(GROUPS),
        "from_first_to_last": two_way(first, last).tolist(),
        "fell_back": int(fell(first, last).sum()),
        "would_fall_by_chance": falls_by_chance(first, last),
        "whole_estimates": complete,
    }


def _stages(run: Run) -> dict[int, dict[str, float]]:
    stages = {}
    for stage, first, last in run.stages:
        stages[stage] = {"steps": last - first + 1.0}
        for name in ("forward_kl", "reverse_kl"):
            found = [v for s, v in run.series(f"paced/divergence/{name}").items() if first <= s <= last]
            if found:
                stages[stage] |= {f"{name}_first": found[0], f"{name}_last": found[-1]}
    return stages


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "standard_error": estimate.standard_error, "interval": estimate.interval}


def _comparison(found: Comparison) -> dict[str, Any]:
    ends = {when: {"step": m.step, "tokens": m.tokens, "accuracy": m.accuracy.mean} for when, m in _ends(found)}
    return {"at_equal": found.at, "budget": found.budget, **ends, **_numbers(found.gain), "separable": found.separable}


def _ends(found: Comparison) -> list[tuple[str, Moment]]:
    return [("first", found.first), ("other", found.other)]
