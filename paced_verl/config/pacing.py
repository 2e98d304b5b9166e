"""``paced.weight``, ``pass_rate``, ``sampler``, ``route``: which prompts, and how much each weighs."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, StrictBool, model_validator
from typing_extensions import Self

from paced_verl.config.base import (
    Block,
    Exponent,
    Factor,
    Fraction,
    Number,
    PriorCount,
    Share,
    Steps,
    Temperature,
    Text,
    Whole,
)
from paced_verl.pacing.instructions import Route
from paced_verl.pacing.kernel import Kernel, fit_exponents, fit_prior
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.policies import get_sampler
from paced_verl.teacher.context import TeacherContext


class KernelConfig(Block):
    """The weight w(p) of a pass rate, as a table's rates and a group's both have it."""

    kernel: Text = "beta"
    """``beta`` (p^α (1−p)^β, the paper), ``hard_filter`` (1 for low ≤ p ≤ high), ``uniform``, or a registered name."""
    alpha: Exponent = 1.0
    beta: Exponent = 1.0
    low: Fraction = 0.2
    high: Fraction = 0.8
    estimate: Literal["empirical", "posterior"] = "empirical"
    """``empirical``: w(k/n), the paper. ``posterior``: E[w | k of n], keeps hopeless and mastered prompts alive."""
    prior: tuple[PriorCount, PriorCount] | None = None
    """Beta(a, b) prior of the posterior estimate. null: Beta(1, 1), or what is fitted where there is a table."""

    @model_validator(mode="after")
    def _is_a_kernel(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}")
        if self.prior and self.estimate == "empirical":
            raise ValueError("prior is only read by estimate: posterior")
        self.to_kernel()  # knows its names
        return self

    def to_kernel(self) -> Kernel:
        """The kernel before anything is fitted to a table."""
        return Kernel(
            name=self.kernel,
            alpha=self.alpha,
            beta=self.beta,
            low=self.low,
            high=self.high,
            estimate=self.estimate,
            prior=self.prior or (1.0, 1.0),
        )


class OutcomeConfig(Block):
    """What a response of the student's weighs by how it ended, beside the weight of its prompt."""

    correct: Factor = 1.0
    wrong: Factor = 1.0

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if self.correct == self.wrong == 0:
            raise ValueError("correct: 0 and wrong: 0 leave nothing to train on")
        return self


class WeightConfig(KernelConfig):
    """How a prompt's pass rate becomes its weight in the loss. ``prior: null`` is fitted (empirical Bayes)."""

    fit: Literal["moments"] | None = None
    """``moments`` takes α and β from the table's mean and variance instead of from the keys above."""
    source: Literal["table", "group"] = "table"
    """``table``: the pass rate known when the prompt is drawn. ``group``: that of the step's own rollouts of it."""
    teacher: Literal["gate", "min", "product"] | None = None
    """What the teacher's own pass rate makes of the weight: :class:`paced_verl.pacing.reliability.Reliability`."""
    outcome: OutcomeConfig | None = None
    """Factors of a response that is correct, and of one that is not; null: as if both were 1. Of weight 0 the teacher
    scores none."""

    @model_validator(mode="after")
    def _consistent(self) -> WeightConfig:
        if self.fit and self.kernel != "beta":
            raise ValueError(f"fit: {self.fit} sets the exponents of kernel: beta, not of kernel: {self.kernel}")
        if self.source == "group" and (self.fit or (self.estimate == "posterior" and self.prior is None)):
            raise ValueError("source: group fits nothing to a table: set alpha and beta, and prior for a posterior")
        if self.source == "group" and self.teacher:
            raise ValueError("source: group weighs by the step's own rollouts; teacher goes with source: table")
        return self

    @property
    def can_be_zero(self) -> bool:
        """Whether there are pass rates that weigh 0."""
        return self.teacher is not None or (
            self.estimate == "empirical" and not self.to_kernel().of_rate(np.linspace(0, 1, 101)).all()
        )

    def with_exponents(self, kernel: Kernel, table: PassRateTable) -> Kernel:
        """The kernel with the exponents that ``fit`` takes from a table; as it is without ``fit``.

        Raises:
            ValueError: The table's mean and variance are no Beta distribution's.
        """
        if self.fit is None:
            return kernel
        alpha, beta = fit_exponents(table.successes, table.samples)
        return dataclasses.replace(kernel, alpha=alpha, beta=beta)

    def with_prior(self, kernel: Kernel, table: PassRateTable) -> Kernel:
        """The kernel with the prior that a table suggests, where none is written."""
        if self.estimate == "empirical" or self.prior is not None:
            return kernel
        return dataclasses.replace(kernel, prior=fit_prior(table.successes, table.samples))


class PassRateConfig(Block):
    """How and when pass rates are estimated."""

    samples: Annotated[Whole, Field(ge=1, le=1024)] = 8
    """Responses K a prompt."""
    temperature: Temperature = 1.0
    refresh: Literal["start", "stage", "every", "draw", "never"] = "stage"
    """``draw``: a prompt's, when it is about to be drawn, and of no other; else of all prompts at these steps."""
    every_steps: Steps | None = None
    ahead: Annotated[Whole, Field(ge=1, le=1024)] = 2
    """Batches that are measured before they can be drawn, with ``refresh: draw``."""
    max_age: Steps | None = None
    """Steps after which a prompt that is about to be drawn is measured again, with ``refresh: draw``; null: never."""
    at_end: StrictBool = False
    """Estimate once more after the last step, for the record."""
    from_training: StrictBool = True
    """Also learn, for free, from the scored rollouts that train."""
    decay: Share = 0.8
    """What an observation keeps of a prompt's older counts; 1 keeps them all, and lags behind a student that learns."""
    threshold: Number = 0.5
    """A response is correct from this score on (verl's ``acc`` where the reward function gives it, else the reward)."""
    teacher_samples: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    """Responses of the teacher a prompt, judged when the prompt's own are measured for the first time; null: none are
    asked for beside those that train."""
    file: Text | None = None
    """Start from this table instead of estimating at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> PassRateConfig:
        if (self.refresh == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with refresh: every, and refresh: every needs every_steps")
        for key in ("ahead", "max_age"):
            if self.refresh != "draw" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} goes with refresh: draw")
        return self


def _sampler(name: str) -> str:
    get_sampler(name)
    return name


class SamplerConfig(Block):
    """Which prompts come next. ``power`` γ draws q ∝ w^γ and leaves w^(1−γ) to the loss: same expected gradient."""

    policy: Annotated[Text, AfterValidator(_sampler)] = "pass_rate"
    """Who draws: ``pass_rate``, or a name given to :func:`paced_verl.pacing.policies.register_sampler`."""
    power: Annotated[Number, Field(ge=0, le=10)] = 0.0
    explore: Fraction = 0.0
    skip_zero_weight: StrictBool = True
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0


def _shows_more(context: str) -> str:
    if not TeacherContext(context).privileged:
        raise ValueError("none shows the teacher what the student sees; hopeless prompts need more")
    return context


class RouteConfig(Block):
    """Which losses a prompt gets, by its pass rate, beside a task reward."""

    mastered: Fraction = 1.0
    """From this pass rate on: neither distillation nor task reward."""
    hopeless: Fraction = 0.0
    """Up to this pass rate: the student's own weights under ``context`` are the teacher; no task reward."""
    context: Annotated[Text, AfterValidator(_shows_more)] = "solution"

    @model_validator(mode="after")
    def _consistent(self) -> RouteConfig:
        if self.hopeless >= self.mastered:
            raise ValueError(f"hopeless={self.hopeless} must be below mastered={self.mastered}")
        return self

    def to_route(self) -> Route:
        """Its two borders."""
        return Route(self.mastered, self.hopeless)
