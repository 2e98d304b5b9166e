"""What the page says, out of the tables: every figure and every sentence with a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from paced_verl.config import PassRateConfig
from scripts.experiments.evidence import curves, defaults, of_predictions, of_rule, of_verl
from scripts.experiments.evidence.cells import (
    BELOW,
    BUDGETS,
    COMPARED,
    DECAYS,
    DRAWN,
    GATED,
    HOPELESS,
    LAST,
    LONG,
    LONGEST,
    LOWER,
    MAIN,
    RATES,
    RIGHT,
    RULED,
    SECOND,
    SHORT,
    STEPS,
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
    by_budget,
    by_final,
    by_second,
    pairs,
    pick,
    registered,
)
from scripts.experiments.evidence.predictions import R2, R3
from scripts.experiments.evidence.regimes import REGIMES
from scripts.experiments.evidence.shown import Measure, after, level, of_pairs, priced, short, shown, to_uniform
from scripts.experiments.evidence.stats import Difference, difference
from scripts.experiments.page import lines, wrapped

MAPPED = tuple(name for name in REGIMES if name != BELOW)
ORDERED = (*MAIN, *SECOND)
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
        "map": _over_regimes(runs, "E1", MAPPED, COMPARED[1:], lambda both: by_area(both, "step")),
        "final": _over_regimes(runs, "E1", MAPPED, COMPARED[1:], by_final),
        "prices": _prices(runs),
        "filter": _filter(runs),
        "below": _below(runs),
        "controls": _controls(runs),
        "rates": _rates(runs),
        "doses": _doses(runs),
        "budgets": _budgets(runs),
        "estimates": _estimates(runs),
        "candidates": _candidates(runs),
        "orders": _orders(runs),
        "families": _families(runs),
        "forgetting": _forgetting(runs),
        "snr": _snr(snr),
        "verl": of_verl.block(runs, in_verl),
        "predictions": of_predictions.block(runs),
        "rule": of_rule.block(runs),
        "prompts_free": of_rule.prompts_free(runs),
        "in_two_stages": of_rule.in_two_stages(runs),
        "as_first_written": of_rule.as_first_written(runs),
    }


def _over_regimes(
    runs: Runs, part: str, regimes: Sequence[str], arms: Sequence[str], measure: Measure, **where: Any
) -> str:
    """A row an arm, a column a regime; empty where the programme has no such run."""

    def cell(arm: str, regime: str) -> str:
        ran = pick(runs, part, regime, arm, **where)
        return shown(to_uniform(runs, part, regime, arm, measure, **where)) if ran else ""

    return lines(["arm", *map(short, regimes)], [[arm, *(cell(arm, regime) for regime in regimes)] for arm in arms])


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
            for arm in COMPARED[1:]
        ]
        parts.append(lines([f"at {words}", *map(short, MAPPED)], table))
    return "\n\n".join(parts)


MEASURES: dict[str, Measure] = {
    "area at equal steps": lambda both: by_area(both, "step"),
    "final, equal steps": by_final,
    "final, price 1 : 1 : 3": lambda both: by_final(both, "price 1:1:3"),
    "final, price 1 : 8 : 3": lambda both: by_final(both, "price 1:8:3"),
}


def _filter(runs: Runs) -> str:
    """The sampler less the filter on the teacher's correctness, wherever the teacher is wrong."""
    wrong = (R2, SECOND[0])
    where = [("E1", regime, {}) for regime in wrong] + [("E6", regime, {"family": "sums"}) for regime in wrong]
    table = []
    for part, regime, more in where:
        both = pairs(*(pick(runs, part, regime, arm, **more) for arm in ("sampler", "teacher correct")))
        table.append([short(regime) + (", sums" if more else ""), *(priced(m(both)) for m in MEASURES.values())])
    return lines(["sampler − teacher correct", *MEASURES], table)


def _below(runs: Runs) -> str:
    arms = [arm for arm in (*SHORT, *DRAWN) if arm != "uniform"]
    table = [[arm, *(priced(to_uniform(runs, "E1", BELOW, arm, m)) for m in MEASURES.values())] for arm in arms]
    return lines(["arm", *MEASURES], table)


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
                at = [[after(run, step) for run in found] for step in AT]
                table.append([regime, arm, f"{rate:g}", *map(level, at), level([over_the_run(run) for run in found])])
    head = ["regime", "arm", "learning rate", *(f"step {step}" for step in AT), OVER_THE_LOG]
    best = [
        [
            short(regime),
            words,
            *(f"{best_rate(runs, regime, arm, read):g}" for arm in ("uniform", "sampler")),
            shown(at_the_same_rate(runs, regime, read)),
            shown(at_best_rates(runs, regime, read)),
        ]
        for regime in MAIN
        for words, read in READ.items()
    ]
    columns = [
        "regime",
        "accuracy",
        "uniform's best",
        "sampler's best",
        f"both at {PLAIN['rate']:g}",
        "each at its best",
    ]
    return "\n\n".join([lines(head, table), lines(columns, best)])


def at_the_end(run: Run) -> float:
    return after(run, AT[-1])


def over_the_run(run: Run) -> float:
    """Mean accuracy over the log of the programme's steps."""
    return curves.areas(run, run, "step", run["steps"])[0]


OVER_THE_LOG = "over the log of the steps"
READ = {f"at step {AT[-1]}": at_the_end, OVER_THE_LOG: over_the_run}


def best_rate(runs: Runs, regime: str, arm: str, read: Callable[[Run], float]) -> float:
    """Of an arm in a regime, by the calibration's seeds."""
    by_rate = {rate: pick(runs, "E0", regime, arm, rate=rate) for rate in LOWER}
    return max(LOWER, key=lambda rate: np.mean([read(run) for run in by_rate[rate].values()]))


def at_the_same_rate(runs: Runs, regime: str, read: Callable[[Run], float]) -> Difference:
    """The sampler less uniform, both at the programme's rate, on the seeds of the other rates."""
    return _read(*(pick(runs, "E8", regime, arm) for arm in ("sampler", "uniform")), read)


def at_best_rates(runs: Runs, regime: str, read: Callable[[Run], float]) -> Difference:
    """The same, each at the rate that does it best."""
    sides = [pick(runs, "E8", regime, arm, rate=best_rate(runs, regime, arm, read)) for arm in ("sampler", "uniform")]
    return _read(*sides, read)


def _read(one: dict[int, Run], other: dict[int, Run], read: Callable[[Run], float]) -> Difference:
    return difference(*([read(run) for run in side] for side in zip(*pairs(one, other), strict=True)))


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
    head = ["regime", "prompts", "arm"]
    told = lines([*head, *(f"step {step}" for step in STEPS_SHOWN)], table)
    return f"{told}\n\n{_longest(runs, head)}"


def _longest(runs: Runs, head: list[str]) -> str:
    """More arms, and further."""
    table = []
    for regime in LONGEST:
        for arm in SHORT:
            levels = _accuracies(pick(runs, "E3", regime, arm), LONGEST_SHOWN)
            gaps = [""] * len(LONGEST_AT)
            if arm != "uniform":
                gaps = [
                    priced(to_uniform(runs, "E3", regime, arm, lambda both, axis=axis: by_final(both, axis)))
                    for axis in LONGEST_AT
                ]
            table.append([short(regime), f"{REGIMES[regime].prompts:,}", arm, *levels, *gaps])
    ends = [f"over uniform, {words}" for words in LONGEST_AT.values()]
    return lines([*head, *(f"step {step}" for step in LONGEST_SHOWN), *ends], table)


STEPS_SHOWN, LONGEST_SHOWN = (0, 20, 40, 80, 160, 320, 640, LAST), (0, 40, 160, 640, LAST)
LONGEST_AT = {"step": "step 640", "price 1:1:3": "1 : 1 : 3", "price 1:8:3": "1 : 8 : 3"}


def _accuracies(runs: dict[int, Run], steps: Sequence[int] = STEPS_SHOWN) -> list[str]:
    return [level([after(run, step) for run in runs.values()]) for step in steps]


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
    return "\n\n".join([first, lines(["reverse KL", *heads], free), _decays(runs), _fewer_samples(runs)])


def _decays(runs: Runs) -> str:
    """Free estimates by what is left of an old count when its prompt is drawn again, beside the default."""

    def gap(regime: str, decay: float) -> str:
        one, other = (pick(runs, "E7", regime, "free estimates", stages="reverse", decay=d) for d in (decay, None))
        return shown(by_area(pairs(one, other), "step"))

    default = PassRateConfig().decay
    table = [[f"decay {decay:g} − decay {default:g}", *(gap(r, decay) for r in MAIN)] for decay in DECAYS]
    return lines(["free estimates, at equal steps", *map(short, MAIN)], table)


def _candidates(runs: Runs) -> str:
    """Fewer samples, estimated again, predicted: in the regimes of the rule, by what these cost."""
    arms = [(arm, where) for arm, part, where in defaults.CANDIDATES if part == "E7"] + [("predicted", {})]
    parts = []
    for words, measure in BY_PRICE.items():
        table = [
            [defaults.named(arm, where), *(priced(further(runs, r, arm, where, measure)) for r in RULED)]
            for arm, where in arms
        ]
        parts.append(lines([words, *map(short, RULED)], table))
    return "\n\n".join(parts)


BY_PRICE: dict[str, Measure] = {
    "averaged over the run": lambda both: by_area(both, "step"),
    "for uniform's price, 1 : 1 : 3": lambda both: by_budget(both, "price 1:1:3"),
    "for uniform's price, 1 : 8 : 3": lambda both: by_budget(both, "price 1:8:3"),
}


def further(runs: Runs, regime: str, arm: str, where: dict[str, Any], measure: Measure) -> Difference:
    """Of an arm in E7, whatever its samples, to uniform, which has none."""
    return measure(pairs(pick(runs, "E7", regime, arm, **where), pick(runs, "E7", regime, "uniform")))


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
        regimes = (*RULED, *SECOND) if way == TWO_STAGES else ORDERED
        table = _over_regimes(runs, "E5", regimes, arms, lambda both: by_area(both, "step"), stages=way)
        parts.append(f"{way}:\n\n{table}")
    return "\n\n".join([*parts, f"accuracy at the end, two stages − two stages, reversed:\n\n{_order(runs)}"])


def _order(runs: Runs) -> str:
    """What the order of the stages is worth to an arm."""

    def gap(arm: str, regime: str) -> Difference:
        return by_final(pairs(*(pick(runs, "E5", regime, arm, stages=way) for way in WAYS[2:])))

    return lines(["arm", *map(short, ORDERED)], [[arm, *(shown(gap(arm, r)) for r in ORDERED)] for arm in SHORT])


def _families(runs: Runs) -> str:
    parts = []
    for words, measure in MEASURES.items():
        table = [
            [arm, *(priced(to_uniform(runs, "E6", r, arm, measure, family="sums")) for r in ORDERED)]
            for arm in SHORT[1:]
        ]
        parts.append(lines([words, *map(short, ORDERED)], table))
    return "\n\n".join(parts)


def _forgetting(runs: Runs) -> str:
    arms = ("weights", "sampler", "posterior sampler", "teacher correct", "teacher gate")
    table = [[r, WAYS[0], *cells] for r in SECOND for cells in _kept(runs, "E1", r, arms)]
    table += [[r, way, *cells] for r in SECOND for way in WAYS[1:] for cells in _kept(runs, "E5", r, SHORT[1:], way)]
    ends = ["second skill after 48 steps", "uniform's", "difference", "at equal new accuracy"]
    return lines(["regime", "KL", "arm", *ends], table)


def _kept(runs: Runs, part: str, regime: str, arms: Sequence[str], way: str = WAYS[0]) -> Iterator[list[str]]:
    """What each arm has kept of the second skill, and uniform."""
    for arm in arms:
        both = pairs(*(pick(runs, part, regime, name, stages=way) for name in (arm, "uniform")))
        ends = [[run["second"][run["step"].index(STEPS)] for run in each] for each in zip(*both, strict=True)]
        yield [arm, *map(level, ends), shown(difference(*ends)), of_pairs(by_second(both))]


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
