"""What is healthy, and what to do where it is not: the words of ``docs/metrics.md`` that a page repeats.

A test holds both together: each of these stands there, for the same metric.
"""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """Of a metric.

    Attributes:
        title: What a page calls it.
        healthy: The range that the table of ``docs/metrics.md`` names.
        remedy: The sentence there for a metric that is outside of it.
    """

    title: str
    healthy: str
    remedy: str


ADVICE = {
    "paced/weight/ess": Advice(
        "Effective share of the prompts",
        "> 0.3",
        "`ess` low: few prompts carry the gradient. At `sampler.power: 0`, `explore: 0` a batch of B prompts "
        "counts like B · ess / (1 − zero_share) equal ones. `paced.sampler.power=1` gives every row the same loss "
        "weight.",
    ),
    "paced/weight/zero_share": Advice(
        "Share of prompts that weigh 0",
        "< 0.5",
        "`zero_share` high: too few samples see the difference between rare and never. `estimate=posterior` gives "
        "these prompts a small weight, so the share is 0 under `kernel: beta`; more `samples` measures better. A "
        "share of 1 ends the run.",
    ),
    "paced/weight/max": Advice(
        "Largest weight, of a mean of 1",
        "< 10",
        "`max` high: one prompt can dominate a batch. Lower exponents, or `sampler.power`.",
    ),
    "paced/pass_rate/low": Advice(
        "Hopeless prompts (p < .2)",
        "shrinks",
        "`low` high from the start: the problems are too hard, or no response is scored as correct. Check the "
        "reward and `paced.pass_rate.threshold` first; then `estimate=posterior`, easier problems, a first stage "
        "on teacher responses.",
    ),
    "paced/pass_rate/high": Advice(
        "Mastered prompts (p > .8)",
        "grows",
        "`high` high: little is left to learn. Other problems, or `paced.weight.alpha` > `beta` to weigh what is left.",
    ),
    "paced/pass_rate/frontier": Advice(
        "Prompts at the frontier (.2 ≤ p ≤ .8)",
        "> 0.2 while training",
        "`frontier` falls and `low` grows: the student gets worse. Lower the learning rate or shorten the stage.",
    ),
    "paced/sampler/entropy": Advice(
        "Evenness of the draws",
        "> 0.8",
        "`entropy` low: the same few prompts are drawn again and again. Lower `sampler.power`, add `sampler.explore`.",
    ),
    "paced/sampler/staleness": Advice(
        "Age of the pass rates",
        "≪ a stage",
        "`staleness` grows by 1 a step in teacher stages: teacher responses say nothing about the student. Use "
        "`refresh: every`. In student stages, prompts of weight 0 grow stale unless `sampler.explore` > 0.",
    ),
    "paced/divergence/value": Advice(
        "Divergence in each stage",
        "falls within a stage",
        "`value` does not fall: learning rate, or the teacher cannot be imitated from this prompt (try a context "
        "only if the student can use it).",
    ),
    "paced/divergence/tail_mass": Advice(
        "Teacher mass outside its top k",
        "< 0.03",
        "`tail_mass` high: the bound is loose and the tail is learned as one bucket. Raise `paced.teacher.topk`.",
    ),
    "paced/targets/skipped": Advice(
        "Rows without a usable teacher response",
        "< 10 % of rows",
        "`targets/skipped` high (`targets.keep: correct` only): more `targets.attempts`, `targets.temperature` > "
        "0, a `teacher.context`, or `keep: all`. Such rows stay in the mean, so they shrink the step.",
    ),
    "paced/rollout/failed": Advice(
        "Responses that raised an error",
        "0",
        "The first error is printed. verl pads the missing rows; they count as zeros in the mean.",
    ),
    "actor/grad_norm": Advice(
        "Steps whose gradient was clipped",
        "< half of the steps above `actor.grad_clip`",
        "`grad_norm` above `grad_clip` in most steps: every step has the same length, so the size of weights and "
        "losses says little, only their direction. Raise `actor_rollout_ref.actor.grad_clip`, or read the "
        "learning rate as a step length.",
    ),
}
