"""What a reader takes with him, with its figures: the page's first paragraphs, and those of the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scripts.experiments.evidence import defaults
from scripts.experiments.evidence.cells import BELOW, BUDGETS, RULED
from scripts.experiments.evidence.contrasts import Run, Runs, by_area, by_budget, by_final, pairs, pick
from scripts.experiments.evidence.of_verl import at_equal_tokens, verl_pairs
from scripts.experiments.evidence.page import at_best_rates, at_the_end, further, over_the_run
from scripts.experiments.evidence.predictions import R0, R2, R3, R4
from scripts.experiments.evidence.shown import after, level, priced, short, shown, to_uniform
from scripts.experiments.evidence.stats import Difference
from scripts.experiments.page import wrapped

POINTS = (
    """**Where the teacher is wrong at what the student cannot do, pacing helps, and a filter on the teacher's answers
    helps as much for less.** In R2 the sampler ends 48 steps {r2_final} ahead of uniform, at one learning rate for
    both; with each at its own best rate {r2_rates}. Leaving out the teacher's wrong responses, which needs no
    estimates, is {r2_correct} from the sampler over the log of the steps, {r2_correct_final} at the end, and at equal
    price (1 : 1 : 3) {r2_correct_price}; on the second task {sums_correct} at the end. That is so where its responses
    train. Under reverse KL there is no such filter, and gating by the teacher's own pass rates is {r2_gate} from the
    sampler; in two stages the filter reaches the first one alone and ends {two_correct} from uniform, the sampler
    {two_sampler}.""",
    """**With a right teacher it can win a short run, and loses the long one.** On the first task uniform training on
    hopeless prompts first destroys what the student could do: in R3 its accuracy falls from {r3_start} to {r3_dip} in
    three steps. Pacing has no such dip ({r3_area} over the log of 48 steps; {r3_rates} with each at its own best rate),
    but never gets to what is out of reach either: after 320 steps uniform has {r3_uniform}, the sampler {r3_sampler}.
    Uniform passes it {crossing}. Estimating again does not help as long as p̂ = 0 weighs 0 ({r3_again} from uniform
    after 320 steps); the posterior, estimated every 12 steps, ends {r3_posterior} from it, estimates not counted.""",
    """**Estimates cost about what they bring where all tokens cost the same and nothing is wrong**: at 1 : 1 : 3 and in
    forward KL the sampler with eight samples a prompt ends {r0_price} from uniform in R0 and {r3_price} in R3; where
    the verifier is wrong (R4) it loses, {r4_price}. In two stages the paper's weights have {two_r0} in R0, {two_r3} in
    R3 and {two_r4} in R4 for uniform's price. With a teacher that is eight times as dear, the skipped prompts pay for
    the estimates ({r0_dear} and {r3_dear}). Where a run sees less than half of its prompts (R6), they do not: {below}
    at 1 : 1 : 3, {below_dear} at 1 : 8 : 3.""",
    """**Four samples a prompt are the cheaper setting.** Over the log of the steps the sampler with K = 4 is {k4} from
    K = 8 in R3, with K = 2 {k2}; the posterior needs more, with K = 2 it is {posterior_k2} from K = 8. For what
    uniform's 48 steps cost at 1 : 1 : 3, the paper's weights with K = 4 have {four_r0} in R0, {four_r1} in R1,
    {four_r3} in R3, {four_r5} in R5, and {four_r4} in R4, so that they are not shown to do no harm there. At the price
    of all of their own 48 steps they are {four_own_r3} from uniform in R3, and {four_own_r4} in R4.""",
    """**On the second task only a wrong teacher makes pacing help.** There the sampler is {sums_r2} from uniform at
    step 48 in R2, and {sums_r2_price} at 1 : 1 : 3; with a right teacher it is {sums_r0} from uniform at step 48 in R0
    and {sums_r3} in R3, and at 1 : 1 : 3 {sums_r0_price} and {sums_r3_price}.""",
    """**verl's own trainer has the sampler's signs, and less of their size, at equal steps**: {verl_sampler_r2} over
    the log of the steps in R2, {verl_sampler_r3} in R3; with the posterior {verl_posterior_r2} and {verl_posterior_r3}.
    (Adjusted for all comparisons together, only the first is settled.) **At equal tokens the sampler loses there**,
    training tokens not counted: {verl_sampler_r2_tokens} and {verl_sampler_r3_tokens}; with the posterior
    {verl_posterior_r2_tokens} and {verl_posterior_r3_tokens}. Leaving out the teacher's wrong responses, which needs no
    estimates, has {verl_correct_r2} at equal steps in R2, and {verl_correct_r2_tokens} at equal tokens.""",
    """**The default**: where a teacher's token costs eight of the student's, the rule chooses {chosen}, in forward KL;
    where all tokens cost the same, {chosen_equal}. In two stages it chooses {chosen_two} at 1 : 8 : 3, and
    {chosen_two_equal} at 1 : 1 : 3.""",
)
IN_SHORT = (
    """**The teacher is wrong at what the student cannot do**: pacing helps ({r2_final} accuracy after 48 steps;
    {r2_rates} with the learning rate tuned for each), and so does leaving out the teacher's mistakes where its
    responses train, which needs no estimates and is no worse at equal price ({r2_correct_price} from pacing). A second
    stage on the student's own undoes that: there the filter ends {two_correct} from uniform, pacing {two_sampler}.""",
    """**The teacher is right, and the run is short**: pacing keeps what the student can do, where training on hopeless
    problems first destroys it ({r3_area} over the log of 48 steps; {r3_rates} with tuned rates). At equal price it pays
    where the teacher's tokens are dear ({r3_dear} at 1 : 8 : 3); where all tokens cost the same, forward KL alone gains
    nothing ({r3_price} at 1 : 1 : 3), and the paper's two stages do ({two_r3}). A second task has no such fall, and
    there pacing loses ({sums_r3} at step 48).""",
    """**The teacher is right, and the run is long**: uniform weights win by far ({r3_uniform} against {r3_sampler}
    after 320 steps), since problems that weigh 0 are never learned.""",
    """**With verl's own trainer** (a wrong and a right teacher, 5 seeds) the sampler's signs agree at equal steps
    ({verl_sampler_r2} and {verl_sampler_r3}), and at equal tokens it loses to uniform ({verl_sampler_r2_tokens} and
    {verl_sampler_r3_tokens}). Leaving out the wrong teacher's mistakes has {verl_correct_r2_tokens} there.""",
)


def answer(runs: Runs, in_verl: Sequence[Run]) -> str:
    """Bullets."""
    return _bullets(POINTS, runs, in_verl)


def in_short(runs: Runs, in_verl: Sequence[Run]) -> str:
    """Fewer of them, for the README."""
    return _bullets(IN_SHORT, runs, in_verl)


def _bullets(points: Sequence[str], runs: Runs, in_verl: Sequence[Run]) -> str:
    figures = _figures(runs) | _figures_of_verl(in_verl)
    return "\n".join(wrapped(f"- {' '.join(point.format(**figures).split())}", "  ") for point in points)


def _figures(runs: Runs) -> dict[str, str]:
    def gap(measure: Callable[..., Difference], one: dict[int, Run], other: dict[int, Run]) -> str:
        return shown(measure(pairs(one, other)))

    def area(both: list[tuple[Run, Run]]) -> Difference:
        return by_area(both, "step")

    def final(regime: str, arm: str, axis: str = "step", part: str = "E1", **where: Any) -> str:
        return priced(to_uniform(runs, part, regime, arm, lambda both: by_final(both, axis), **where))

    def at(part: str, arm: str, step: int, **where: Any) -> str:
        return level([after(run, step) for run in pick(runs, part, R3, arm, **where).values()], 2)

    def samples(arm: str, few: int) -> str:
        return gap(area, *(pick(runs, "E4", R3, arm, samples=k) for k in (few, 8)))

    def on_sums(regime: str, axis: str = "step") -> str:
        return final(regime, "sampler", axis, "E6", family="sums")

    def chosen(axis: str, candidates: Sequence[defaults.Choice] = defaults.CANDIDATES) -> str:
        one = defaults.chosen(defaults.ranked(runs, axis, candidates))
        return f"*{one.arm}*" if one else "none, for none is shown to do no harm in R0, R1 and R4"

    def four(regime: str) -> str:
        return priced(further(runs, regime, "weights", {"samples": 4}, lambda both: by_budget(both, "price 1:1:3")))

    def two_stages(regime: str) -> str:
        stages = {"stages": "two stages"}
        return priced(to_uniform(runs, "E5", regime, "weights", lambda both: by_budget(both, "price 1:1:3"), **stages))

    def four_own(regime: str) -> str:
        return priced(further(runs, regime, "weights", {"samples": 4}, lambda both: by_final(both, "price 1:1:3")))

    def again(arm: str) -> str:
        return gap(by_final, pick(runs, "E3", R3, arm, refresh="every"), pick(runs, "E3", R3, "uniform", changes=long))

    long = f"prompts={BUDGETS[1][1]}"
    sampler, correct = (pick(runs, "E1", R2, arm) for arm in ("sampler", "teacher correct"))
    gate, reverse = (pick(runs, "E5", R2, arm, stages="reverse") for arm in ("teacher gate", "sampler"))
    sums = {arm: pick(runs, "E6", R2, arm, family="sums") for arm in ("sampler", "teacher correct")}
    return {
        "chosen": chosen("price 1:8:3"),
        "chosen_equal": chosen("price 1:1:3"),
        "chosen_two": chosen("price 1:8:3", defaults.IN_TWO_STAGES),
        "chosen_two_equal": chosen("price 1:1:3", defaults.IN_TWO_STAGES),
        "r2_final": final(R2, "sampler"),
        "r2_rates": shown(at_best_rates(runs, R2, at_the_end)),
        "r2_correct": gap(area, correct, sampler),
        "r2_correct_final": gap(by_final, correct, sampler),
        "r2_correct_price": priced(by_final(pairs(correct, sampler), "price 1:1:3")),
        "sums_correct": gap(by_final, sums["teacher correct"], sums["sampler"]),
        "r2_gate": gap(area, gate, reverse),
        "r3_start": at("E1", "uniform", 0),
        "r3_dip": at("E1", "uniform", 3),
        "r3_area": shown(to_uniform(runs, "E1", R3, "sampler", area)),
        "r3_rates": shown(at_best_rates(runs, R3, over_the_run)),
        "r3_uniform": at("E3", "uniform", 320, changes=long),
        "r3_sampler": at("E3", "sampler", 320, changes=long),
        "crossing": crossing(runs),
        "r3_again": again("sampler"),
        "r3_posterior": again("posterior sampler"),
        "r0_price": final(R0, "sampler", "price 1:1:3"),
        "r3_price": final(R3, "sampler", "price 1:1:3"),
        "r4_price": final(R4, "sampler", "price 1:1:3"),
        "below": final(BELOW, "sampler", "price 1:1:3"),
        "below_dear": final(BELOW, "sampler", "price 1:8:3"),
        "r0_dear": final(R0, "sampler", "price 1:8:3"),
        "r3_dear": final(R3, "sampler", "price 1:8:3"),
        "k4": samples("sampler", 4),
        "k2": samples("sampler", 2),
        "posterior_k2": samples("posterior sampler", 2),
        **{f"four_{regime[:2].lower()}": four(regime) for regime in RULED},
        "two_correct": final(R2, "teacher correct", part="E5", stages="two stages"),
        "two_sampler": final(R2, "sampler", part="E5", stages="two stages"),
        **{f"two_{regime[:2].lower()}": two_stages(regime) for regime in (R0, R3, R4)},
        "four_own_r3": four_own(R3),
        "four_own_r4": four_own(R4),
        "sums_r2": on_sums(R2),
        "sums_r2_price": on_sums(R2, "price 1:1:3"),
        "sums_r0": on_sums(R0),
        "sums_r3": on_sums(R3),
        "sums_r0_price": on_sums(R0, "price 1:1:3"),
        "sums_r3_price": on_sums(R3, "price 1:1:3"),
    }


def _figures_of_verl(in_verl: Sequence[Run]) -> dict[str, str]:
    """Over the run and at uniform's tokens, by arm and regime; nothing where an arm was not run."""
    names = {"sampler": "sampler", "posterior sampler": "posterior", "teacher correct": "correct"}
    found = {f"verl_{name}_{r}{at}": "" for name in names.values() for r in ("r2", "r3") for at in ("", "_tokens")}
    for regime, arm, both in verl_pairs(in_verl):
        if arm in names:
            name = f"verl_{names[arm]}_{short(regime).lower()}"
            found |= {name: shown(by_area(both, "step")), f"{name}_tokens": shown(at_equal_tokens(both))}
    return found


def crossing(runs: Runs) -> str:
    """Between which two measurements uniform passes the sampler for good, over all long runs of R3."""
    found: dict[tuple[int, int], int] = {}
    total = 0
    for _, prompts in BUDGETS[1:]:
        changes = f"prompts={prompts}"
        for one, other in pairs(*(pick(runs, "E3", R3, arm, changes=changes) for arm in ("sampler", "uniform"))):
            steps = [step for step in one["step"] if step in other["step"]]
            ahead = max(step for step in steps if after(one, step) >= after(other, step))
            later = [step for step in steps if step > ahead]
            place = (ahead, later[0]) if later else (ahead, 0)
            found[place] = found.get(place, 0) + 1
            total += 1
    said = [
        f"between steps {low} and {high} in {n}" if high else f"not within {low} steps in {n}"
        for (low, high), n in sorted(found.items())
    ]
    return f"{', '.join(said)} of {total} runs, of 512 to 4,096 prompts, which are measured at these steps"
