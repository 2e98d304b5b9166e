"""What a plan recommends, by what can be seen before the run and what docs/experiments.md found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paced_verl.config import PacedConfig
from paced_verl.pacing.pass_rates import LOW, PassRateTable
from paced_verl.targets.files import Outcomes

ENOUGH = 4
"""Samples a prompt, with which the sampler and the paper's weights did in most regimes what they did with eight."""
MANY = 0.2
"""Share of hopeless prompts from which it is worth a sentence."""
JUDGED = 20
"""Hopeless prompts whose teacher response was judged, from which a share of right ones is named."""
WRONG, RIGHT = 0.5, 0.8
"""Shares of right teacher responses at hopeless prompts: below the first the teacher counts as wrong there, from the
second on as right. Between them the experiments have no advice."""


@dataclass(frozen=True)
class Known:
    """What is known before the run; ``None`` where it is not.

    Attributes:
        table: Pass rates of the training prompts, from a file.
        judged: Of stored teacher responses.
        prompts: Rows of the training files.
        draws: Prompts that all steps draw.
    """

    table: PassRateTable | None = None
    judged: Outcomes | None = None
    prompts: int | None = None
    draws: int | None = None

    @property
    def hopeless(self) -> float:
        """Share of the measured prompts with p < .2; NaN where none is."""
        return float("nan") if self.table is None else float(self.table.summary()["low"])

    @property
    def right(self) -> tuple[float, int] | None:
        """Share of right teacher responses at hopeless prompts, and of how many prompts; ``None`` of too few."""
        if self.table is None or self.judged is None:
            return None
        hopeless = np.isin(self.judged.prompts, np.flatnonzero(self.table.rates() < LOW))
        n = int(hopeless.sum())
        if n < JUDGED:
            return None
        return float(self.judged.correct[hopeless].sum() / self.judged.tries[hopeless].sum()), n


def recommend(paced: PacedConfig, known: Known) -> Iterator[str]:
    """Sentences, each with the key it is about."""
    rates, weight = paced.pass_rate, paced.weight
    if weight.kernel == "uniform" or weight.source != "table":
        return
    everything = rates.refresh not in ("never", "draw")
    if everything and known.draws is not None and known.prompts is not None and known.draws < known.prompts:
        yield (
            f"the run draws {known.draws:,} prompts and measures all {known.prompts:,} before. In a small task that "
            "saw two fifths of its prompts that paid at no price; paced.pass_rate.refresh=draw measures less, "
            "+paced=uniform nothing (docs/experiments.md)"
        )
    if rates.refresh != "never" and weight.estimate == "empirical" and rates.samples > ENOUGH:
        yield (
            f"paced.pass_rate.samples={ENOUGH} costs {ENOUGH / rates.samples:.0%} of what {rates.samples} do. On a "
            "small task the paper's weights lost nothing by it that could be seen; where the verifier is wrong at half "
            "of the prompts it could not be told that they do no harm (docs/experiments.md)"
        )
    if known.hopeless >= MANY and weight.estimate == "empirical" and weight.can_be_zero and not weight.teacher:
        yield (
            f"{known.hopeless:.0%} of the prompts are hopeless (p < .2), and those of p = 0 train nothing. "
            f"{_there(known)} (docs/experiments.md)"
        )


def _there(known: Known) -> str:
    """What follows where many prompts are hopeless, by whether the teacher is right there."""
    both = (
        "On small tasks pacing helped where the teacher is wrong there, and so did leaving out its mistakes; where it "
        "is right and the run long, +paced=uniform did better"
    )
    told = known.right
    if told is None:
        return f"{both}. `paced-verl targets` with paced.targets.keep=correct says how often it is right"
    right, judged = told
    said = f"The teacher is right at {right:.0%} of the {judged:,} of them where its response was judged. "
    if right < WRONG:
        return (
            f"{said}On small tasks leaving out a teacher's mistakes was worth as much as pacing: "
            "paced.targets.keep=correct in a stage on its responses, where that needs no estimates, and "
            "paced.weight.teacher=gate on the student's, where what the first has kept out comes back"
        )
    if right >= RIGHT:
        return (
            f"{said}On small tasks pacing then helped short runs of one task in two; in long runs +paced=uniform did "
            "better"
        )
    return said + both
