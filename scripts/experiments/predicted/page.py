"""What the page says: its tables and every sentence with a number, out of the study's table."""

from __future__ import annotations

import re
from typing import Any

from paced_verl.statistics import Estimate, estimate
from scripts.experiments.page import lines, wrapped
from scripts.experiments.predicted.regimes import (
    FEATURES,
    PROMPTS,
    REGIMES,
    RULE,
    STUDENTS,
    TEACHER_SAMPLES,
    TRUTH,
    K,
)

Row = dict[str, Any]
Found = dict[str, Estimate]
QUARTER = ("2 each, predicted", "8 of a quarter, predicted")
BROKEN = "sums, half of the labels wrong"
"""The regime in which nothing that costs a quarter keeps the rule."""


def over_seeds(table: list[Row], value: str, way: str, model: str = "", features: str = "") -> Found:
    """``value`` of a way of estimating, in each regime."""
    rows = [row for row in table if (row["way"], row["model"], row["features"]) == (way, model, features)]
    return {regime: estimate([row[value] for row in rows if row["regime"] == regime]) for regime in REGIMES}


def passed(found: Found) -> str:
    """In how many regimes the mean keeps the rule."""
    return f"{sum(each.mean >= RULE for each in found.values())} of {len(found)}"


def worst(found: Found) -> str:
    """The smallest mean, and its regime."""
    regime = min(found, key=lambda name: found[name].mean)
    return f"{shown(found[regime])} in “{regime}”"


def span(found: Found, *regimes: str) -> str:
    """Smallest and largest mean, of all regimes or of these."""
    means = [found[regime].mean for regime in regimes or found]
    return f"{min(means):.2f} to {max(means):.2f}"


def shown(each: Estimate) -> str:
    return f"{each.mean:.2f} ± {each.interval[1] - each.mean:.2f}"


def grid(columns: dict[str, Found]) -> str:
    """A row a regime."""
    rows = [[regime, *(shown(found[regime]) for found in columns.values())] for regime in REGIMES]
    return lines(["regime", *columns], rows)


# Blocks.


def blocks(table: list[Row]) -> dict[str, str]:
    """Every block of the page by the name in its marker."""
    return {
        "answer": answer(table),
        "plan": plan(table),
        "regimes": regimes(table),
        "unpredicted": unpredicted(table),
        "predicted": predicted(table),
        "rule": rule(table),
        "likelihood": likelihood(table),
        "unseen": unseen(table),
        "advice": advice(table),
    }


def answer(table: list[Row]) -> str:
    known, blind = (over_seeds(table, "relative", QUARTER[0], "logistic", name) for name in (FEATURES[1], FEATURES[0]))
    return wrapped(
        f"With two samples of every prompt, and the student's likelihood of a stored response among what the "
        f"regression sees, the weights were worth at least {RULE} of those from {K} samples in "
        f"{passed(known)} test cases, but {worst(known)}. From lengths and source alone they were in {passed(blind)}."
    )


def plan(table: list[Row]) -> str:
    seeds = len({row["seed"] for row in table})
    return wrapped(
        f"There are {len(REGIMES)} test cases, below called regimes. Each is {PROMPTS} prompts and one student. An "
        f"estimate may see up to {K} samples of a prompt; {TRUTH} further ones stand for its true pass rate. A "
        f"teacher, one for each kind of problem, writes {TEACHER_SAMPLES} responses to each prompt, one of which is "
        f"stored: a right one, if there is one. Everything was done with {seeds} seeds, each with its own initial "
        f"student, training and prompts; the teachers are the same. A ± is the half-width of the 95 % interval over "
        f"these seeds (Student's t)."
    )


def regimes(table: list[Row]) -> str:
    """The table of what was asked, with the pass rates that came out."""
    rate, low = over_seeds(table, "mean_rate", "all alike"), over_seeds(table, "below_a_tenth", "all alike")
    rows = []
    for name, regime in REGIMES.items():
        learned, stages = STUDENTS[regime.student]
        prompts = said(regime.prompts) + (f"; {regime.shuffled:.0%} have another's answer" if regime.shuffled else "")
        rows.append([name, prompts, said(learned), str(stages[regime.stage]), shown(rate[name]), shown(low[name])])
    head = ["regime", "prompts", "the student learnt", "to a loss of", "mean pass rate", "share of prompts below 0.1"]
    return lines(head, rows)


def said(families: dict[str, dict[str, Any]]) -> str:
    """Problems in words."""
    words = {
        "spell_backward": "words of {min_word_len} to {max_word_len} letters",
        "chain_sum": "sums of {min_terms} to {max_terms} numbers",
        "letter_counting": "letters in {min_words} to {max_words} words",
    }
    whole = ", ".join(words[name].format(**settings) for name, settings in families.items())
    return re.sub(r"\b(\d+) to \1\b", r"\1", whole)


def unpredicted(table: list[Row]) -> str:
    ways = [f"{n} each, one prior" for n in (1, 2, 4)] + ["8 of a quarter, one prior"]
    ways = ["all alike", *ways, "2 each, as they are", "8 each, as they are"]
    found = {way: over_seeds(table, "relative", way) for way in ways}
    whole = over_seeds(table, "efficiency", f"{K} each, one prior")
    alike, two, four = found["all alike"], found["2 each, one prior"], found["4 each, one prior"]
    text = wrapped(
        f"Two samples of every prompt, with the fitted prior, give {span(two)} of what {K} give, at least {RULE} in "
        f"{passed(two)} regimes; four give {span(four)}, in {passed(four)}. Equal weights, which look at no pass rate, "
        f"give as much in {passed(alike)} regimes, all of them sums: there weights matter little, and a prediction "
        f"that keeps the rule there has shown little."
    )
    return f"{text}\n\n" + grid({f"cos² of {K} each": whole} | found)


def predicted(table: list[Row]) -> str:
    prior = over_seeds(table, "relative", "2 each, one prior")
    known = over_seeds(table, "relative", QUARTER[0], "logistic", FEATURES[1])
    gains = [known[regime].mean - prior[regime].mean for regime in REGIMES]
    columns = {"2 each, one prior": prior}
    for way in QUARTER:
        for features in FEATURES:
            name = f"{way.removesuffix(', predicted')}, {features}"
            columns[name] = over_seeds(table, "relative", way, "logistic", features)
    text = wrapped(
        f"At the same two samples of every prompt, the prediction from the likelihood is never much worse than one "
        f"prior for all, and often better: the difference between the means is {min(gains):+.3f} to {max(gains):+.2f}."
    )
    return f"{text}\n\n" + grid(columns)


def rule(table: list[Row]) -> str:
    """In how many regimes each way that costs a quarter keeps the rule, and its worst."""
    ways = dict.fromkeys((row["way"], row["model"], row["features"]) for row in table if row["price"] == 1 / 4)
    found = {way: over_seeds(table, "relative", *way) for way in ways if not way[0].startswith("never")}
    rows = []
    for way, each in found.items():
        whole = sum(value.interval[0] >= RULE for value in each.values())
        rows.append([*way, passed(each), f"{whole} of {len(each)}", worst(each)])
    head = ["way", "regression", "it sees", f"regimes with mean ≥ {RULE}", f"whole interval ≥ {RULE}", "worst regime"]
    broken = [found[way, "logistic", known][BROKEN] for way in QUARTER for known in FEATURES[1:]]
    logistic, boosting = (found[QUARTER[0], model, FEATURES[1]] for model in ("logistic", "boosting"))
    better = sum(logistic[regime].mean > boosting[regime].mean for regime in REGIMES)
    text = wrapped(
        f"With the likelihood, two samples each and a logistic regression keep the rule in {passed(logistic)} regimes. "
        f"They break it in “{BROKEN}”, and so do {K} samples of a quarter, and the teacher's rate does not help: "
        f"{min(each.mean for each in broken):.2f} to {max(each.mean for each in broken):.2f}. No upper end of these "
        f"intervals is above {max(each.interval[1] for each in broken):.2f}, so it is no accident of the seeds. "
        f"Boosted trees, of the same samples and features, are worse in {better} of {len(REGIMES)} regimes."
    )
    return f"{text}\n\n" + lines(head, rows)


def likelihood(table: list[Row]) -> str:
    """Why a prediction can be better than samples."""
    ways = {
        f"{K} each, one prior": over_seeds(table, "efficiency", f"{K} each, one prior"),
        "likelihood as the rate, no samples": over_seeds(table, "efficiency", "likelihood as the rate"),
        "2 each, with likelihood": over_seeds(table, "efficiency", QUARTER[0], "logistic", FEATURES[1]),
    }
    eight, alone, _ = ways.values()
    words = [name for name, regime in REGIMES.items() if set(regime.prompts) == {"spell_backward"}]
    sums = [name for name, regime in REGIMES.items() if set(regime.prompts) == {"chain_sum"}]
    text = wrapped(
        f"With words, the likelihood taken for the pass rate, without any sample or regression, has a cos² of "
        f"{span(alone, *words)} with the true weights; {K} samples each have {span(eight, *words)}. With sums it is "
        f"{span(alone, *sums)} against {span(eight, *sums)}."
    )
    return f"{text}\n\n" + grid({f"cos², {way}": found for way, found in ways.items()})


def unseen(table: list[Row]) -> str:
    names = ("relative", "rate_rank", "brier", "brier_of_the_mean", "slope")
    labels = ("relative efficiency", "rank correlation", "Brier score", "Brier score of the mean", "slope")
    way = ("never sampled, predicted", "logistic", FEATURES[1])
    return grid({label: over_seeds(table, name, *way) for label, name in zip(labels, names, strict=True)})


def advice(table: list[Row]) -> str:
    raw, two, whole = (
        over_seeds(table, "relative", way)
        for way in ("2 each, as they are", "2 each, one prior", f"{K} each, as they are")
    )
    return wrapped(
        f"- **Few samples need the prior.** Two samples each are worth {span(raw)} if k/n is taken as it is, and "
        f"{span(two)} with `weight.estimate: posterior`, at no cost. Even {K} samples each are worth {span(whole)} "
        f"without it.",
        indent="  ",
    )
