"""The page's first paragraphs: what a reader takes with him, with its figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.experiments.evidence import curves
from scripts.experiments.evidence.cells import BELOW, BUDGETS
from scripts.experiments.evidence.contrasts import Runs, by_area, by_final, pairs, pick
from scripts.experiments.evidence.page import shown, to_uniform
from scripts.experiments.evidence.predictions import R0, R2, R3
from scripts.experiments.page import wrapped

POINTS = (
    """**A wrong teacher is what pacing is for.** Where the teacher is wrong at what the student cannot do (R2), the
    sampler ends 48 steps {r2_final} ahead of uniform, and {r2_price} at equal price; on the second task, too
    ({r2_sums}, averaged over the run). Leaving out the teacher's wrong responses does about as well under forward KL:
    averaged over the run {r2_correct}, against the sampler's {r2_area}. Under reverse KL there is no such filter, and
    the teacher's own pass rates do it ({r2_gate}).""",
    """**With a right teacher it wins short runs and loses long ones.** Uniform training on hopeless prompts first
    destroys what the student could do: in R3 its accuracy falls from {r3_start} to {r3_dip} in three steps. Pacing has
    no such dip ({r3_area}, averaged over 48 steps), but never gets to what is out of reach either: after 320 steps
    uniform has {r3_uniform}, the sampler {r3_sampler}. Uniform passes it after {crossing} steps (quartiles), whether
    there are 512 prompts or 4,096. Estimating again does not help as long as p̂ = 0 weighs 0; the posterior, estimated
    every 12 steps, ends {r3_again} from uniform.""",
    """**Estimates cost more than they bring where all tokens cost the same and nothing is wrong**: at 1 : 1 : 3 the
    sampler ends {r0_price} from uniform in R0 and {r3_price} in R3, and {below} where a run sees less than half of its
    prompts. With a teacher that is eight times as dear, the skipped prompts pay for them ({r0_dear} and {r3_dear}).
    Few samples will do: with K = 2 the sampler has {k2} in R3, with K = 8 {k8}.""",
    """**Not every task shows it.** On the second task, with a right teacher, there is nothing to see
    ({r3_sums} in R3).""",
)


def answer(runs: Runs) -> str:
    """Bullets."""
    figures = _figures(runs)
    return "\n".join(wrapped(f"- {' '.join(point.format(**figures).split())}", "  ") for point in POINTS)


def _figures(runs: Runs) -> dict[str, str]:
    def area(regime: str, arm: str, part: str = "E1", **where: Any) -> str:
        return shown(to_uniform(runs, part, regime, arm, lambda both: by_area(both, "step"), **where))

    def final(regime: str, arm: str, axis: str = "step") -> str:
        return shown(to_uniform(runs, "E1", regime, arm, lambda both: by_final(both, axis)))

    def at(part: str, arm: str, step: int, **where: Any) -> str:
        found = pick(runs, part, R3, arm, **where).values()
        return f"{np.mean([curves.value_at(*curves.curve(run, 'step'), step) for run in found]):.2f}"

    def samples(k: int) -> str:
        both = pairs(pick(runs, "E4", R3, "sampler", samples=k), pick(runs, "E1", R3, "uniform"))
        return shown(by_area(both, "step"))

    long = f"prompts={BUDGETS[1][1]}"
    again = pick(runs, "E3", R3, "posterior sampler", refresh="every")
    return {
        "r2_final": final(R2, "sampler"),
        "r2_price": final(R2, "sampler", "price 1:1:3"),
        "r2_sums": area(R2, "sampler", "E6", family="sums"),
        "r2_correct": area(R2, "teacher correct"),
        "r2_area": area(R2, "sampler"),
        "r2_gate": area(R2, "teacher gate", "E5", stages="reverse"),
        "r3_start": at("E1", "uniform", 0),
        "r3_dip": at("E1", "uniform", 3),
        "r3_area": area(R3, "sampler"),
        "r3_uniform": at("E3", "uniform", 320, changes=long),
        "r3_sampler": at("E3", "sampler", 320, changes=long),
        "crossing": _crossing(runs),
        "r3_again": shown(by_final(pairs(again, pick(runs, "E3", R3, "uniform", changes=long)))),
        "r0_price": final(R0, "sampler", "price 1:1:3"),
        "r3_price": final(R3, "sampler", "price 1:1:3"),
        "below": final(BELOW, "sampler", "price 1:1:3"),
        "r0_dear": final(R0, "sampler", "price 1:8:3"),
        "r3_dear": final(R3, "sampler", "price 1:8:3"),
        "k2": samples(2),
        "k8": samples(8),
        "r3_sums": area(R3, "sampler", "E6", family="sums"),
    }


def _crossing(runs: Runs) -> str:
    """Quartiles of the last step at which the sampler is not behind uniform, over all long runs of R3."""
    found = []
    for _, prompts in BUDGETS[1:]:
        changes = f"prompts={prompts}"
        both = pairs(pick(runs, "E3", R3, "sampler", changes=changes), pick(runs, "E3", R3, "uniform", changes=changes))
        for one, other in both:
            steps = np.arange(1, one["step"][-1] + 1)
            ahead = np.interp(steps, one["step"], one["accuracy"]) >= np.interp(steps, other["step"], other["accuracy"])
            found.append(int(steps[ahead].max(initial=0)))
    low, high = np.quantile(found, [0.25, 0.75])
    return f"{low:.0f} to {high:.0f}"
