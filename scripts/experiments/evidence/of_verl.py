"""The page's block on runs with verl's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scripts.experiments.evidence import curves
from scripts.experiments.evidence.contrasts import Run, Runs, by_area, by_final, matched
from scripts.experiments.evidence.shown import level, short, shown, to_uniform
from scripts.experiments.evidence.stats import Difference, difference, holm
from scripts.experiments.page import lines, wrapped


class Compared(NamedTuple):
    """An arm beside uniform: its pairs of runs with verl's trainer, the area between them, and that in plain torch over
    the same steps."""

    regime: str
    arm: str
    both: list[tuple[Run, Run]]
    area: Difference
    there: Difference


def block(runs: Runs, in_verl: Sequence[Run]) -> str:
    """Arms over uniform with verl's trainer, beside the same arms in plain torch."""
    if not in_verl:
        return "These runs have not been made yet."
    since = min(step for run in in_verl for step in run["step"] if step > 0)
    compared = [
        Compared(regime, arm, both, by_area(both, "step"), _in_plain_torch(runs, regime, arm, since))
        for regime, arm, both in verl_pairs(in_verl)
    ]
    adjusted = holm([one.area.p for one in compared])
    table = [
        [
            short(one.regime),
            one.arm,
            str(len(one.both)),
            shown(one.area),
            f"{p:.2g}",
            shown(one.there),
            _same_sign(one.area, one.there),
            shown(by_final(one.both)),
            *(level([_tokens(run, of) / _tokens(uniform, of) for run, uniform in one.both], 2) for of in (1, 8)),
            shown(at_equal_tokens(one.both)),
        ]
        for one, p in zip(compared, adjusted, strict=True)
    ]
    head = ["regime", "arm", "seeds", "area, verl", "p, Holm", "area, plain torch", "same sign"]
    head += ["final accuracy, equal steps", "tokens beside uniform's", "the teacher's eightfold"]
    told = lines([*head, "accuracy at uniform's tokens"], table)
    return f"{told}\n\n{_said(compared, in_verl)}"


def _in_plain_torch(runs: Runs, regime: str, arm: str, since: float) -> Difference:
    """Over the steps from one on: verl's first validation is later than plain torch's."""
    return to_uniform(runs, "E5", regime, arm, lambda both: by_area(both, "step", since=since), stages="two stages")


def _tokens(run: Run, of_teacher: float) -> float:
    """All that a run has read and written, validation and training aside; the teacher's so many times."""
    price = {"student": 1.0, "estimate": 1.0, "teacher": of_teacher}
    return sum(price[who] * run[f"paced/tokens/{who}/{kind}"] for who in price for kind in ("prompt", "generated"))


def verl_pairs(in_verl: Sequence[Run]) -> list[tuple[str, str, list[tuple[Run, Run]]]]:
    """Regime, arm, and its runs with uniform's. They begin with the same models; servers sample, so that validations
    before the first step differ all the same."""
    found = []
    for regime in dict.fromkeys(run["regime"] for run in in_verl):
        by_arm: dict[str, dict[int, Run]] = {}
        for run in in_verl:
            if run["regime"] == regime:
                by_arm.setdefault(run["arm"], {})[run["seed"]] = run
        found += [(regime, arm, matched(by_arm[arm], by_arm["uniform"])) for arm in by_arm if arm != "uniform"]
    return found


def at_equal_tokens(both: list[tuple[Run, Run]]) -> Difference:
    """Accuracy where uniform has spent its last token, along a line from the start to the first validation. That is
    kind to whoever pays for estimates before it learns."""
    found = []
    for one, other in both:
        at = other["tokens"][-1]
        found.append(
            [curves.value_at(*curves.curve(run, "tokens"), min(at, run["tokens"][-1])) for run in (one, other)]
        )
    return difference(*np.array(found).T)


def _same_sign(one: Difference, other: Difference) -> str:
    """Of two intervals: ``not settled`` where one of them holds 0."""
    signs = [(found.t_interval[0] > 0) - (found.t_interval[1] < 0) for found in (one, other)]
    return "not settled" if 0 in signs else "yes" if signs[0] == signs[1] else "no"


def _said(compared: Sequence[Compared], in_verl: Sequence[Run]) -> str:
    """The sampler's rows in sentences, and what uniform training does to the student there."""
    said = [
        f"in {short(one.regime)} the sampler has {shown(one.area)} over the run, where plain torch has "
        f"{shown(one.there)}, {shown(by_final(one.both))} at its end, and {shown(at_equal_tokens(one.both))} at "
        "uniform's tokens"
        for one in compared
        if one.arm == "sampler"
    ]
    uniform = [run for run in in_verl if run["arm"] == "uniform"]
    rises = sum(run["accuracy"][-1] > run["accuracy"][0] for run in uniform)
    drop = -min(min(np.diff(run["accuracy"])) for run in uniform)
    first = [run["accuracy"][1] - run["accuracy"][0] for run in uniform]
    paid = [100 * share for share in map(_estimates, in_verl) if share]
    share = f" Estimates are {min(paid):.0f} to {max(paid):.0f} % of the tokens of runs that make any." if paid else ""
    return wrapped(
        f"In words: {'; '.join(said)}. Of {len(uniform)} uniform runs {rises} end higher than they began; the largest "
        f"fall from one validation to the next is {drop:.3f}, and at the first one, after {uniform[0]['step'][1]} "
        f"steps, they have gained {level(first)}.{share}"
    )


def _estimates(run: Run) -> float:
    """Share of a run's tokens that went into estimates."""
    paid: float = sum(run[f"paced/tokens/estimate/{kind}"] for kind in ("prompt", "generated"))
    return paid / run["tokens"][-1]
