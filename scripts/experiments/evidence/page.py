"""What the page says, out of the tables: every figure and every sentence with a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scripts.experiments.evidence import curves, defaults, predictions
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
    matched,
    of,
    pairs,
    pairs_of,
    pick,
    reached,
    registered,
    target,
)
from scripts.experiments.evidence.predictions import PREDICTIONS, R3, R7_RIGHT, R7_WRONG, outcome
from scripts.experiments.evidence.regimes import REGIMES
from scripts.experiments.evidence.stats import Difference, difference
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
        "dips": _dips(runs),
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


def priced(found: Difference) -> str:
    """The same at a price, which may not pay for an arm's first steps."""
    if not found.left_out:
        return shown(found)
    return "not affordable" + (f" in {found.left_out} of {found.seeds} seeds" if len(found.gaps) else "")


def of_pairs(found: Difference) -> str:
    """The same with how many seeds could be read; without a figure where these are less than half of them."""
    seeds = f"{len(found.gaps)} of {found.seeds} pairs"
    return seeds if len(found.gaps) < found.left_out else f"{shown(found)}, {seeds}"


def level(values: Sequence[float], digits: int = 3) -> str:
    """Mean over seeds and half of its 95 % interval; nothing where a seed has no value."""
    if np.isnan(values).any():
        return ""
    return shown(Difference(np.asarray(values, np.float64)), digits).strip("*").removeprefix("+")


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


def _dips(runs: Runs) -> str:
    """How uniform falls and comes back; and what the planned steps of the sampler have over all of its."""
    table = []
    for regime in MAPPED:
        uniform, sampler = (pick(runs, "E1", regime, arm) for arm in ("uniform", "sampler"))
        gaps = [(after(one, 48), after(other, 192)) for one, other in pairs(sampler, uniform)]
        levels = [level([after(run, step) for run in uniform.values()]) for step in DIPS]
        table.append([short(regime), *levels, shown(difference(*zip(*gaps, strict=True)))])
    head = ["uniform", *(f"step {step}" for step in DIPS), "sampler at step 48 − uniform at step 192"]
    return lines(head, table)


DIPS = (0, 3, 12, 48, 192)


def _prices(runs: Runs) -> str:
    parts = []
    for axis, words in (
        ("rows", "equal trained rows"),
        ("teacher", "equal teacher tokens"),
        ("price 1:1:3", "equal price, 1 : 1 : 3"),
        ("price 1:8:3", "equal price, 1 : 8 : 3"),
    ):
        table = [
            [arm, *(priced(to_uniform(runs, "E1", r, arm, lambda both, a=axis: by_final(both, a))) for r in MAPPED)]
            for arm in _others("E1")
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
    table = [[arm, *(priced(to_uniform(runs, "E1", BELOW, arm, m)) for m in measures.values())] for arm in arms]
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
    table, said = [], []
    for regime in MAIN:
        for arm in ("uniform", "sampler"):
            for rate in sorted((*RATES, PLAIN["rate"])):
                found = pick(runs, "E0", regime, arm, rate=rate).values()
                at = [[after(run, step) for run in found] for step in AT]
                table.append([regime, arm, f"{rate:g}", *map(level, at)])
        said.append(f"{beside_its_best(runs, regime)} in {short(regime)}")
    told = lines(["regime", "arm", "learning rate", *(f"step {step}" for step in AT)], table)
    text = (
        f"At step {AT[-1]} the sampler at {PLAIN['rate']:g} is from uniform at uniform's own best rate, in brackets, "
        f"{'; '.join(said)}."
    )
    return f"{told}\n\n{wrapped(text)}"


def beside_its_best(runs: Runs, regime: str) -> str:
    """The sampler at the programme's rate less uniform at the one that does uniform best, which is named."""
    by_rate = {rate: pick(runs, "E0", regime, "uniform", rate=rate) for rate in (*RATES, PLAIN["rate"])}
    best = max(by_rate, key=lambda rate: np.mean([after(run, AT[-1]) for run in by_rate[rate].values()]))
    both = pairs(pick(runs, "E0", regime, "sampler"), by_rate[best])
    gap = difference(*([after(run, AT[-1]) for run in side] for side in zip(*both, strict=True)))
    return f"{shown(gap)} ({best:g})"


def after(run: Run, step: float) -> float:
    return curves.value_at(*curves.curve(run, "step"), step)


def _doses(runs: Runs) -> str:
    parts = []
    for arm in SWEPT[1:]:
        table = []
        for h in HOPELESS:
            gaps = [dose(runs, arm, h, t) for t in RIGHT]
            table.append([f"{h:.0%} hopeless", *map(shown, gaps), shown(difference(gaps[0].gaps, gaps[-1].gaps))])
        parts.append(lines([f"{arm}; teacher right there", *(f"{t:.0%}" for t in RIGHT), "0% − 100%"], table))
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
    return [level([after(run, step) for run in runs.values()]) for step in STEPS_SHOWN]


def _estimates(runs: Runs) -> str:
    def gaps(arm: str, **where: Any) -> list[str]:
        """Area and accuracy at equal price over uniform of the same students."""
        over = [
            (
                pick(runs, "E4", r, arm, **where),
                pick(runs, "E4", r, "uniform", **{"stages": where.get("stages", "forward")}),
            )
            for r in MAIN
        ]
        if not all(one for one, _ in over):
            return []
        both = [pairs(one, other) for one, other in over]
        return [*(shown(by_area(b, "step")) for b in both), *(priced(by_final(b, "price 1:1:3")) for b in both)]

    table = []
    for arm in ("sampler", "posterior sampler", "posterior sampler, when drawn"):
        for k in KS:
            columns = gaps(arm, samples=k)
            if columns:
                table.append([arm, str(k), *columns])
    for arm in ("sampler", "posterior sampler"):
        table.append([f"{arm}, estimated every 12 steps", "8", *gaps(arm, refresh="every")])
    heads = [*(f"{short(r)}, steps" for r in MAIN), *(f"{short(r)}, price" for r in MAIN)]
    first = lines(["arm", "K", *heads], table)
    free = [[arm, *gaps(arm, stages="reverse")] for arm in ("sampler", "free estimates")]
    return f"{first}\n\n{lines(['reverse KL', *heads], free)}\n\n{_fewer_samples(runs)}"


def _fewer_samples(runs: Runs) -> str:
    """What fewer samples cost at equal steps, with either estimate: intervals of the difference itself."""

    def gap(arm: str, few: int, many: int, regime: str) -> str:
        return shown(by_area(pairs(*(pick(runs, "E4", regime, arm, samples=k) for k in (few, many))), "step"))

    table = [
        [arm, f"K = {few} − K = {many}", *(gap(arm, few, many, r) for r in MAIN)]
        for arm in ("sampler", "posterior sampler")
        for few, many in ((2, 8), (4, 8), (8, 32))
    ]
    return lines(["at equal steps", "compared", *map(short, MAIN)], table)


def _orders(runs: Runs) -> str:
    parts = []
    for way in WAYS[1:]:
        arms = (*SHORT[1:], *{"reverse": GATED, TWO_STAGES: ZEROS}.get(way, ()))
        table = _over_regimes(runs, "E5", MAIN, arms, lambda both: by_area(both, "step"), stages=way)
        parts.append(f"{way}:\n\n{table}")
    return "\n\n".join([*parts, f"accuracy at the end, two stages − two stages, reversed:\n\n{_order(runs)}"])


def _order(runs: Runs) -> str:
    """What the order of the stages is worth to an arm."""

    def gap(arm: str, regime: str) -> Difference:
        return by_final(pairs(*(pick(runs, "E5", regime, arm, stages=way) for way in WAYS[2:])))

    return lines(["arm", *map(short, MAIN)], [[arm, *(shown(gap(arm, r)) for r in MAIN)] for arm in SHORT])


def _families(runs: Runs) -> str:
    measures: dict[str, Measure] = {
        "averaged over the run": lambda both: by_area(both, "step"),
        "at step 48": by_final,
        "at equal price, 1 : 1 : 3": lambda both: by_final(both, "price 1:1:3"),
        "at equal price, 1 : 8 : 3": lambda both: by_final(both, "price 1:8:3"),
    }
    parts = []
    for words, measure in measures.items():
        table = [
            [arm, *(priced(to_uniform(runs, "E6", r, arm, measure, family="sums")) for r in ORDERED)]
            for arm in SHORT[1:]
        ]
        parts.append(lines([words, *map(short, ORDERED)], table))
    return "\n\n".join(parts)


def _forgetting(runs: Runs) -> str:
    table = []
    for regime in (R7_WRONG, R7_RIGHT):
        for arm in ("weights", "sampler", "posterior sampler", "teacher correct", "teacher gate"):
            both = pairs(pick(runs, "E1", regime, arm), pick(runs, "E1", regime, "uniform"))
            ends = [[run["second"][run["step"].index(48)] for run in each] for each in zip(*both, strict=True)]
            gap = shown(difference(*ends))
            table.append([regime, arm, *map(level, ends), gap, of_pairs(by_second(both))])
    head = ["regime", "arm", "second skill after 48 steps", "uniform's", "difference", "at equal new accuracy"]
    return lines(head, table)


def _snr(snr: Sequence[dict[str, Any]]) -> str:
    table = []
    for regime in dict.fromkeys(row["regime"] for row in snr):
        for rate in sorted({row["pass_rate"] for row in snr}):
            part = [row for row in snr if (row["regime"], row["pass_rate"]) == (regime, rate)]
            if not part:
                continue
            prompts = np.mean([row["prompts"] for row in part])

            def over_seeds(name: str, digits: int, part: list[dict[str, Any]] = part) -> str:
                return level([row[name] for row in part if not math.isnan(row[name])], digits)

            table.append(
                [
                    short(regime),
                    f"{rate - 0.05:.1f} to {rate + 0.05:.1f}",
                    f"{prompts:.0f}",
                    over_seeds("snr2", 3),
                    f"{rate * (1 - rate):.2f}",
                    over_seeds("length", 2),
                    over_seeds("cosine", 2),
                ]
            )
    head = ["regime", "pass rate", "prompts", "SNR²", "p (1 − p)", "length of a gradient", "cosine to what helps"]
    return lines(head, table)


def _verl(runs: Runs, in_verl: Sequence[Run]) -> str:
    """Arms over uniform with verl's trainer, beside the same arms in plain torch."""
    if not in_verl:
        return "These runs have not been made yet."
    table = []
    for regime, arm, both in verl_pairs(in_verl):
        area = by_area(both, "step")
        there = to_uniform(runs, "E5", regime, arm, lambda b: by_area(b, "step"), stages=TWO_STAGES)
        table.append(
            [
                short(regime),
                arm,
                str(len(both)),
                shown(area),
                shown(there),
                _same_sign(area, there),
                shown(by_final(both)),
                level([one["tokens"][-1] / other["tokens"][-1] for one, other in both], 2),
                shown(at_equal_tokens(both)),
            ]
        )
    head = ["regime", "arm", "seeds", "area, verl", "area, plain torch", "same sign", "final accuracy, equal steps"]
    told = lines([*head, "tokens beside uniform's", "accuracy at uniform's tokens"], table)
    return f"{told}\n\n{_verl_said(runs, in_verl)}"


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


def _verl_said(runs: Runs, in_verl: Sequence[Run]) -> str:
    """The table in sentences, and what uniform training does to the student there."""
    said = []
    for regime, arm, both in verl_pairs(in_verl):
        if arm != "sampler":
            continue
        there = to_uniform(runs, "E5", regime, arm, lambda b: by_area(b, "step"), stages=TWO_STAGES)
        said.append(
            f"in {short(regime)} the sampler has {shown(by_area(both, 'step'))} over the run, where plain torch has "
            f"{shown(there)}, {shown(by_final(both))} at its end, and {shown(at_equal_tokens(both))} at "
            "uniform's tokens"
        )
    uniform = [run for run in in_verl if run["arm"] == "uniform"]
    rises = sum(run["accuracy"][-1] > run["accuracy"][0] for run in uniform)
    drop = -min(min(np.diff(run["accuracy"])) for run in uniform)
    first = [run["accuracy"][1] - run["accuracy"][0] for run in uniform]
    paid = [100 * share for run in in_verl if run["arm"] != "uniform" for share in _estimates_of(run)]
    share = f" Estimates are {min(paid):.0f} to {max(paid):.0f} % of the paced runs' tokens." if paid else ""
    return wrapped(
        f"In words: {'; '.join(said)}. Of {len(uniform)} uniform runs {rises} end higher than they began; the largest "
        f"fall from one validation to the next is {drop:.3f}, and at the first one, after {uniform[0]['step'][1]} "
        f"steps, they have gained {level(first)}.{share}"
    )


def _estimates_of(run: Run) -> list[float]:
    """Share of a run's tokens that went into estimates, where its row says so."""
    kinds = [run.get(f"paced/tokens/estimate/{kind}") for kind in ("prompt", "generated")]
    return [] if None in kinds else [sum(kinds) / run["tokens"][-1]]


def _predictions(runs: Runs) -> str:
    table = []
    for p in PREDICTIONS:
        found = of(p, runs)
        low, high = p.expected
        expected = (
            f"below {high:g}" if math.isinf(low) else f"above {low:g}" if math.isinf(high) else f"{low:+g} to {high:+g}"
        )
        came = outcome(p.expected, found)
        second = p.against if p.share == 1 else f"{p.share:g} of {p.against}"
        compared = f"{p.arm} − {second}" if p.arm != p.against else f"{p.arm}: {_way(p.where)} − {_way(p.other)}"
        where = "" if p.arm == p.against else _way(p.where)
        follows = predictions.follows(p, came)
        table.append(
            [
                p.name,
                compared + (f" ({where})" if where else ""),
                MEASURES[p.measure] + ("" if p.axis == "step" else f", {p.axis}"),
                expected,
                _found(p, found, runs),
                came + (f": {follows}" if follows else ""),
            ]
        )
    told = lines(["prediction", "compared", "measure", "expected", "found", "outcome"], table)
    return f"{told}\n\n{_oracle(runs)}"


def _found(p: predictions.Prediction, found: Difference, runs: Runs) -> str:
    """With how many seeds it is of, where these are not all, and how many runs reached the accuracy in question."""
    if p.axis in curves.PRICES:
        return priced(found)
    said = of_pairs(found) if found.left_out else shown(found)
    if p.measure == "tokens":
        one, other = reached(pairs_of(p, runs), target(runs, p.regime))
        said += f"; a* reached by {one:.0%} and {other:.0%}"
    return said


def _oracle(runs: Runs) -> str:
    """What the oracle has over the sampler with the same kernel, which the predictions did not ask."""
    gaps = [
        shown(by_area(pairs(pick(runs, "E1", regime, "oracle"), pick(runs, "E1", regime, "sampler")), "step"))
        for regime in (predictions.R2, R3)
    ]
    return wrapped(
        f"The oracle has the sampler's kernel, and not the posterior. From the sampler with K = 8 it differs by "
        f"{gaps[0]} in R2 and {gaps[1]} in R3: at K = 8 better estimates are worth no more than that, and what the "
        "oracle has over the posterior sampler is the posterior's own."
    )


MEASURES = {
    "area": "area",
    "final": "final accuracy",
    "tokens": "teacher tokens saved",
    "second": "second skill at equal new accuracy",
    "gain": "area over uniform's",
    "shrinking": "gap in accuracy, step 320 − step 40",
}


def _way(where: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(SAID.get(value, str(value)) for _, value in where)


SAID = {predictions.HALF_WRONG: "60 % hopeless, teacher wrong", predictions.HALF_RIGHT: "60 % hopeless, teacher right"}
"""Worlds in words."""


def _rule(runs: Runs) -> str:
    """The rule at both ratios, and what it chooses."""
    parts = [_ranking(defaults.ranked(runs, axis), axis) for axis in reversed(defaults.RATIOS)]
    return "\n\n".join([*parts, _choice(runs)])


def _ranking(candidates: Sequence[defaults.Candidate], axis: str) -> str:
    table = [
        [
            found.arm,
            *(priced(found.harm[r]) for r in defaults.NOTHING_TO_GAIN),
            "yes" if found.harmless else "no",
            *(priced(found.gain[r]) for r in defaults.TO_GAIN),
            priced(found.mean),
        ]
        for found in candidates
        if len(found.mean.gaps) or any(len(gap.gaps) for gap in (found.harm | found.gain).values())
    ]
    gone = [found.arm for found in candidates if found.arm not in {row[0] for row in table}]
    harm, gain = (tuple(map(short, group)) for group in (defaults.NOTHING_TO_GAIN, defaults.TO_GAIN))
    said = lines([f"at {axis}", *harm, "non-inferior", *gain, f"mean of {', '.join(gain)}"], table)
    if gone:
        said += "\n\n" + wrapped(f"Not affordable in any regime or seed at {axis}: {', '.join(gone)}.")
    return said


def _choice(runs: Runs) -> str:
    found = {axis: defaults.ranked(runs, axis) for axis in defaults.RATIOS}
    none = [axis for axis, candidates in found.items() if defaults.chosen(candidates) is None]
    said = [f"At {axis} no arm is non-inferior in {_list_of(defaults.NOTHING_TO_GAIN)}." for axis in none]
    candidates = found[defaults.DECIDES]
    best, first = defaults.chosen(candidates), defaults.as_good(candidates)
    if best is not None:
        others = [one for one in candidates if one.harmless and one not in first]
        said.append(
            f"At {defaults.DECIDES} {sum(one.harmless for one in candidates)} arms are. The best mean is that of "
            f"*{first[0].arm}*, {shown(first[0].mean)}; not told from it: "
            + (", ".join(f"*{one.arm}* ({_behind(first[0], one)})" for one in first[1:]) or "none")
            + f". The simplest of these is **{best.arm}**."
        )
        if others:
            said.append("Behind it: " + ", ".join(f"*{one.arm}* by {_behind(first[0], one)}" for one in others) + ".")
    return wrapped(" ".join(said))


def _behind(first: defaults.Candidate, other: defaults.Candidate) -> str:
    return shown(difference(first.mean.gaps, other.mean.gaps)).strip("*").removeprefix("+")


def _list_of(regimes: Sequence[str]) -> str:
    *most, last = map(short, regimes)
    return f"{', '.join(most)} and {last}"
