"""``paced.capability``: how the tokens of a run are shared among capabilities."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from paced_verl.capability.curriculum import By
from paced_verl.capability.policies import get_policy
from paced_verl.config.base import Block, Fraction, Number, Share, Steps, Text, Whole

NEEDS_PROBES = ("gains", "read", "greedy")
STATIC = ("uniform", "task_static", "one_hot", "fixed")
"""Policies that keep one mix."""


def _policy(name: str) -> str:
    get_policy(name)
    return name


class ProbeConfig(Block):
    """What says how good the student is at each capability: prompts that are set apart and never trained."""

    prompts: Annotated[Whole, Field(ge=2)] = 128
    """Of each capability."""
    samples: Steps = 4
    """Responses to each."""
    score: Literal["accuracy", "divergence"] = "accuracy"
    """``divergence``: the student reads a correct response of the teacher, and seldom answers: cheaper by far."""
    sample_every: Steps = 3
    """``divergence``: it answers at the first two decisions and at every so many-th, which says what reading means."""

    def answers(self, taken: int) -> bool:
        """Whether the student answers the probes, after they were taken so many times."""
        return self.score == "accuracy" or taken < 2 or taken % self.sample_every == 0

    def responses(self, times: int) -> int:
        """Responses to a prompt where probes are taken so many times: one that is read counts as one that is written.

        The last time the student answers, whatever the score; where it reads, the teacher writes a response first.
        """
        answered = sum(self.answers(taken) for taken in range(times - 1)) + 1
        return answered * self.samples + (0 if self.score == "accuracy" else 1 + times)

    @property
    def in_words(self) -> str:
        """What is asked of a prompt at a time."""
        if self.score == "accuracy":
            return f"{self.samples} samples"
        return f"(1 response read, and {self.samples} samples every {self.sample_every} times)"


class ProtectConfig(Block):
    """What may not get worse: losses of the ``top`` most required capabilities count 1 + ``beta`` times."""

    top: Annotated[Whole, Field(ge=0)] = 3
    beta: Annotated[Number, Field(ge=0, le=1e6)] = 0.5


class CurriculumConfig(Block):
    """Levels of difficulty within each capability, and which of them come next."""

    column: Text
    """Of the training data: the value is a prompt's level."""
    by: By = "frontier"
    """``frontier``: those whose pass rate, by the probes, is nearest to 1/2; ``tertiles``: the paper's schedule."""
    order: Annotated[tuple[Text | Whole, ...], Field(min_length=1)] | None = None
    """Its values from easy to hard; null: ascending, if they are numbers."""


class CapabilityConfig(Block):
    """Who gets how much."""

    column: Text = "data_source"
    """Of the training data: the value says which capability a prompt trains."""
    match: dict[Text, Annotated[tuple[Text | Whole, ...], Field(min_length=1)]] | None = None
    """Which values are which capability's, ``{name: [values]}``; null: each value is a capability by itself."""
    requirement: dict[Text, Annotated[Number, Field(ge=0)]] | None = None
    """What the run is for: a weight of each capability, adding up to 1; null: all alike."""
    policy: Annotated[Text, AfterValidator(_policy)] = "gains"
    """Who decides: a name in :mod:`paced_verl.capability.policies`, or one given to ``register_policy``."""
    mix: dict[Text, Annotated[Number, Field(ge=0)]] | None = None
    """Shares of ``policy: fixed``."""
    every_steps: Steps = 10
    """Training steps from one decision to the next."""
    budget: Steps | None = None
    """Tokens of responses that the run may train on; it ends before it could need more. null: its steps."""
    probe: ProbeConfig | None = ProbeConfig()
    """null: the student is not probed, as far as the policy decides without."""
    curriculum: CurriculumConfig | None = None
    """null: all of a capability's prompts are drawn by their pass rates alone."""
    protect: ProtectConfig = ProtectConfig()
    floor: Fraction = 0.02
    """Every capability's smallest share, so that what it gains stays known."""
    trust: Share = 0.5
    """``gains``: how far from the requirement's own mix it may go, 1 is anywhere (squared Hellinger distance)."""
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] = 0.75
    """``gains``: how sure it must be that what it does is better than the requirement's own mix."""
    kappa: Annotated[Number, Field(ge=0, le=100)] = 1.0
    """``read``: deviations that are added to what the ensemble expects."""
    warmup: Annotated[Whole, Field(ge=0, le=10_000)] = 5
    """``read``, ``greedy``: decisions by chance before they know anything."""

    def decisions(self, steps: int) -> int:
        """Decisions of a run of so many steps."""
        return -(-steps // self.every_steps)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("requirement", "mix"):
            shares = getattr(self, key)
            if shares is not None and abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"{key} must add up to 1, but adds up to {sum(shares.values()):g}")
        if (self.policy == "fixed") != (self.mix is not None):
            raise ValueError("mix goes with policy: fixed, and policy: fixed needs mix")
        if self.probe is None and self.policy in NEEDS_PROBES:
            raise ValueError(f"policy: {self.policy} decides by what probes say; probe must not be null")
        if self.probe is None and self.curriculum is not None and self.curriculum.by == "frontier":
            raise ValueError("curriculum.by: frontier follows what probes say; set probe, or by: tertiles")
        return self
