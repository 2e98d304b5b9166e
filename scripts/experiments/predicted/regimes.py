"""Which prompts, which students, how many samples: the plan of the study, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROMPTS, K, TRUTH, TEACHER_SAMPLES = 512, 8, 128, 4
"""Of a regime; samples of each that estimates may see; further ones that stand for the truth; the teacher's."""
SEEDS = range(5)
RULE = 0.95
"""A prediction is kept if a quarter of the samples gives this share of what all of them give, in every regime."""
FEATURES = ("lengths and source", "with likelihood", "with teacher's rate")
"""What a regression may see of a prompt and of the response that is stored for it, each with all that is before."""
Families = dict[str, dict[str, Any]]

SHORT: Families = {"spell_backward": {"min_word_len": 3, "max_word_len": 6}}
SPELL: Families = {"spell_backward": {"min_word_len": 3, "max_word_len": 8}}
LONG: Families = {"spell_backward": {"min_word_len": 3, "max_word_len": 14}}
SUM: Families = {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}
ONE_LENGTH: Families = {"chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}}
COUNT: Families = {"letter_counting": {"min_words": 2, "max_words": 4}}


@dataclass(frozen=True)
class Regime:
    """Prompts, and the student that is asked.

    Attributes:
        prompts: reasoning-gym family → its settings.
        student: A key of STUDENTS.
        stage: Of that student.
        shuffled: Share of prompts whose label is another prompt's.
    """

    prompts: Families
    student: str
    stage: str
    shuffled: float = 0.0


STUDENTS: dict[str, tuple[Families, dict[str, float]]] = {
    "words": (SPELL, {"barely": 0.9, "half": 0.3, "well": 0.08}),
    "sums": (SUM, {"barely": 0.7, "half": 0.4, "well": 0.2}),
    "short words": (SHORT, {"well": 0.1}),
    "mixture": (SPELL | SUM | COUNT, {"half": 0.45}),
}
"""What each learns from, and the training losses, in nats a token, at which it is asked; in this order."""

REGIMES = {
    **{f"words, {stage}": Regime(SPELL, "words", stage) for stage in ("barely", "half", "well")},
    **{f"sums, {stage}": Regime(SUM, "sums", stage) for stage in ("barely", "half", "well")},
    "sums of one length": Regime(ONE_LENGTH, "sums", "half"),
    "sums, half of the labels wrong": Regime(SUM, "sums", "half", shuffled=0.5),
    "words, mostly hopeless": Regime(LONG, "short words", "well"),
    "mixture": Regime(SPELL | SUM | COUNT, "mixture", "half"),
}
