"""What a plan recommends, by what can be seen before the run and what docs/experiments.md found."""

from __future__ import annotations

from collections.abc import Iterator

from paced_verl.config import PacedConfig
from paced_verl.pacing.pass_rates import PassRateTable

ENOUGH = 4
"""Samples a prompt, with which the sampler did in the three regimes where it was tried what it did with eight."""
MANY = 0.2
"""Share of hopeless prompts from which it is worth a sentence."""


def recommend(paced: PacedConfig, table: PassRateTable | None) -> Iterator[str]:
    """Sentences, each with the key it is about.

    Args:
        paced: The parsed block.
        table: Known pass rates of the training prompts, where there is a file of them.
    """
    rates, weight = paced.pass_rate, paced.weight
    if weight.kernel == "uniform" or weight.source != "table":
        return
    if rates.refresh != "never" and weight.estimate == "empirical" and rates.samples > ENOUGH:
        yield (
            f"paced.pass_rate.samples={ENOUGH} costs {ENOUGH / rates.samples:.0%} of what {rates.samples} do; in three "
            "regimes of a small task the sampler lost nothing by it that could be seen (docs/experiments.md)"
        )
    share = 0.0 if table is None else table.summary()["low"]
    if share >= MANY and weight.estimate == "empirical" and weight.can_be_zero and not weight.teacher:
        yield (
            f"{share:.0%} of the prompts are hopeless (p < .2), and those of p = 0 train nothing. On small tasks that "
            "helped where the teacher is wrong there, and in one task of two where it is right and the run short; "
            "where it is right and the run long, +paced=uniform did better (docs/experiments.md)"
        )
