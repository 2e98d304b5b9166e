"""The ``paced:`` block a person writes, checked.

Every key has a type, a range and a default here and nowhere else; an unknown key or a value out of range raises
:class:`ConfigError` with the key, the value, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from paced_verl.kernel import Kernel
from paced_verl.schedule import Schedule

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A configuration that cannot run as written. The message is for the person who wrote it."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightConfig(_Block):
    """How a prompt's pass rate becomes its weight in the loss."""

    kernel: str = "beta"
    """``beta`` (p^α (1−p)^β, the paper), ``hard_filter`` (1 for low ≤ p ≤ high), ``uniform``, or a registered name."""
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    estimate: Literal["empirical", "posterior"] = "empirical"
    """``empirical``: w(k/n), the paper. ``posterior``: E[w | k of n], keeps hopeless and mastered prompts alive."""
    prior: tuple[Positive, Positive] | None = None
    """Beta(a, b) prior of the posterior estimate; null fits it to every estimate or file (empirical Bayes)."""
    fit: Literal["moments"] | None = None
    """``moments`` takes α and β from the table's mean and variance instead of from the keys above."""
    low: Fraction = 0.2
    high: Fraction = 0.8

    @model_validator(mode="after")
    def _consistent(self) -> WeightConfig:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}")
        if self.fit and self.kernel != "beta":
            raise ValueError(f"fit: {self.fit} sets the exponents of kernel: beta, not of kernel: {self.kernel}")
        if self.prior and self.estimate == "empirical":
            raise ValueError("prior is only read by estimate: posterior")
        self.to_kernel()  # knows its names and ranges
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


class PassRateConfig(_Block):
    """How and when pass rates are estimated."""

    samples: Annotated[int, Field(ge=1)] = 8
    temperature: NonNegative = 1.0
    refresh: Literal["start", "stage", "every", "never"] = "stage"
    every_steps: Annotated[int, Field(ge=1)] | None = None
    at_end: bool = False
    """Estimate once more after the last step, for the record."""
    from_training: bool = True
    """Also learn, for free, from the scored rollouts that train."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What an observation keeps of a prompt's older counts."""
    threshold: float = 0.5
    """A response is correct from this score on (verl's ``acc`` where the reward function gives it, else the reward)."""
    file: str | None = None
    """Start from this table instead of estimating at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> PassRateConfig:
        if (self.refresh == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with refresh: every, and refresh: every needs every_steps")
        if self.refresh == "never" and self.file is None and not self.from_training:
            raise ValueError("refresh: never needs a file to start from, or from_training: true")
        return self


class SamplerConfig(_Block):
    """Which prompts come next. ``power`` γ draws q ∝ w^γ and leaves w^(1−γ) to the loss: same expected gradient."""

    power: NonNegative = 0.0
    explore: Fraction = 0.0
    skip_zero_weight: bool = True
    seed: int = 0


class StageConfig(_Block):
    """One stage of the schedule."""

    until: StrictInt | StrictFloat
    """End of the stage: a float is a fraction of the run (1.0 = the end), an integer a training step."""
    divergence: str
    responses: Literal["teacher", "student"]
    parameters: dict[str, float] = Field(default_factory=dict)
    lr_factor: Positive = 1.0

    @field_validator("until")
    @classmethod
    def _in_range(cls, until: int | float) -> int | float:
        if isinstance(until, float) and not 0 < until <= 1:
            raise ValueError(
                "a fraction of the run lies in (0, 1]; a number of steps is written without a decimal point"
            )
        if isinstance(until, int) and until < 1:
            raise ValueError("a stage ends at step 1 or later")
        return until

    @model_validator(mode="after")
    def _runs(self) -> StageConfig:
        import torch

        from paced_verl.divergence import get_divergence

        divergence, thirds = get_divergence(self.divergence), torch.full((1, 3), 1 / 3).log()
        try:
            divergence(thirds, thirds, **self.parameters)
        except TypeError as error:
            raise ValueError(
                f"divergence {self.divergence} does not take parameters {self.parameters}: {error}"
            ) from None
        return self


class TeacherConfig(_Block):
    """What the teacher sees and how much of its distribution is used."""

    backend: Literal["server"] = "server"
    """``server``: verl's vLLM teacher pool (``distillation.teacher_models``)."""
    context: str = "none"
    """``none``, ``solution``, ``answer``, or the path of a Jinja template (see paced_verl/contexts)."""
    solution_key: str = "solution"
    """The field of ``extra_info`` that holds a problem's expert solution."""
    topk: Annotated[int, Field(ge=1)] = 64

    @field_validator("context")
    @classmethod
    def _exists(cls, context: str) -> str:
        from paced_verl.context import BUILTIN

        if context not in BUILTIN and not Path(context).is_file():
            raise ValueError(
                f"expected one of {', '.join(BUILTIN)}, or the path of a Jinja template; there is no such file"
            )
        return context


class TargetsConfig(_Block):
    """Where teacher responses y_T come from."""

    column: str | None = None
    """Take them from this field of the data (a dotted path such as ``extra_info.response``)."""
    file: str | None = None
    """Take them from, and add generated ones to, this parquet file (made by ``paced-verl targets``, or by a run)."""
    keep: Literal["all", "correct"] = "all"
    """``correct`` keeps a generated response only if the reward says so."""
    attempts: Annotated[int, Field(ge=1)] = 1
    """How often to ask for a response that is kept; then the prompt is skipped and counted."""
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class PacedConfig(_Block):
    """The whole ``paced:`` block."""

    weight: WeightConfig = WeightConfig()
    pass_rate: PassRateConfig = PassRateConfig()
    sampler: SamplerConfig = SamplerConfig()
    schedule: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    teacher: TeacherConfig = TeacherConfig()
    targets: TargetsConfig = TargetsConfig()

    @classmethod
    def parse(cls, block: Mapping[str, Any]) -> PacedConfig:
        """Check the block.

        Raises:
            ConfigError: With one line a problem.
        """
        try:
            return cls.model_validate(dict(block))
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None

    def build_schedule(self, total_steps: int) -> Schedule:
        """The stages in steps.

        Raises:
            ConfigError: Stages that overlap, are empty or do not cover the run.
        """
        stages = [stage.model_dump(exclude={"until"}) for stage in self.schedule]
        try:
            return Schedule.from_ends([stage.until for stage in self.schedule], stages, total_steps)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _explain(problem: Any) -> str:
    """One pydantic problem as one line: key, value, what is wrong, what to do."""
    path = ".".join(["paced", *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(known)}."
        return f"{path} is not a key that anything reads. {hint}"
    if problem["type"] == "missing":
        return f"{path} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f"={value!r}"
    return f"{path}{shown}: {message}."


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys known at a place of the block."""
    model: type[BaseModel] = PacedConfig
    for part in location:
        if isinstance(part, int):
            model = StageConfig
        elif part != "schedule":
            annotation = model.model_fields[part].annotation
            assert isinstance(annotation, type)
            model = annotation
    return list(model.model_fields)
