"""The ``paced:`` block a person writes, checked.

Every key has a type, a range and a default here and nowhere else; an unknown key or a value out of range raises
:class:`ConfigError` with the key, the value, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
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
    source: Literal["table", "group"] = "table"
    """``table``: the pass rate known when the prompt is drawn. ``group``: that of the step's own rollouts of it."""
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
        if self.source == "group" and (self.fit or (self.estimate == "posterior" and self.prior is None)):
            raise ValueError("source: group fits nothing to a table: set alpha and beta, and prior for a posterior")
        self.to_kernel()  # knows its names and ranges
        return self

    @property
    def can_be_zero(self) -> bool:
        """Whether there are pass rates that weigh 0."""
        return self.estimate == "empirical" and not self.to_kernel().of_rate(np.linspace(0, 1, 101)).all()

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
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """What an observation keeps of a prompt's older counts; 1 keeps them all, and lags behind a student that learns."""
    threshold: float = 0.5
    """A response is correct from this score on (verl's ``acc`` where the reward function gives it, else the reward)."""
    file: str | None = None
    """Start from this table instead of estimating at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> PassRateConfig:
        if (self.refresh == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with refresh: every, and refresh: every needs every_steps")
        return self


class SamplerConfig(_Block):
    """Which prompts come next. ``power`` γ draws q ∝ w^γ and leaves w^(1−γ) to the loss: same expected gradient."""

    power: NonNegative = 0.0
    explore: Fraction = 0.0
    skip_zero_weight: bool = True
    seed: int = 0


def _tag(value: Any) -> str:
    """Which side of "a plain value, or a block" a value is."""
    return ":two" if isinstance(value, Mapping | BaseModel) else ":one"


class InterpolationConfig(_Block):
    """A divergence that turns linearly into another one: (1−λ) from + λ to, λ from 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    start: str = Field(alias="from")
    end: str = Field(alias="to")
    over: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the stage after which only ``to`` is left."""

    @model_validator(mode="after")
    def _known(self) -> InterpolationConfig:
        from paced_verl.divergence import get_divergence

        for name in (self.start, self.end):
            get_divergence(name)
        return self


class RampConfig(_Block):
    """A number that moves linearly over a stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    start: NonNegative = Field(alias="from")
    end: NonNegative = Field(alias="to")


class StageConfig(_Block):
    """One stage of the schedule."""

    until: StrictInt | StrictFloat
    """End of the stage: a float is a fraction of the run (1.0 = the end), an integer a training step."""
    divergence: Annotated[
        Annotated[str, Tag(":one")] | Annotated[InterpolationConfig, Tag(":two")], Discriminator(_tag)
    ]
    responses: Literal["teacher", "student"]
    parameters: dict[str, float] = Field(default_factory=dict)
    lr_factor: Positive = 1.0
    coef: Annotated[Annotated[NonNegative, Tag(":one")] | Annotated[RampConfig, Tag(":two")], Discriminator(_tag)] = 1.0
    """Factor of the divergence beside verl's task loss; ``{from, to}`` moves linearly over the stage."""

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

        if isinstance(self.divergence, InterpolationConfig):
            if self.parameters:
                raise ValueError("parameters belong to one divergence; an interpolation between two takes none")
            return self
        divergence, thirds = get_divergence(self.divergence), torch.full((1, 3), 1 / 3).log()
        try:
            divergence(thirds, thirds, **self.parameters)
        except TypeError as error:
            raise ValueError(
                f"divergence {self.divergence} does not take parameters {self.parameters}: {error}"
            ) from None
        return self

    def to_stage(self) -> dict[str, Any]:
        """What :class:`paced_verl.schedule.Stage` needs, without its place in the run."""
        stage = self.model_dump(include={"responses", "parameters", "lr_factor"})
        if isinstance(self.divergence, InterpolationConfig):
            stage |= {"divergence": self.divergence.start, "towards": self.divergence.end, "over": self.divergence.over}
        else:
            stage["divergence"] = self.divergence
        coef = self.coef
        stage["coef"] = (coef.start, coef.end) if isinstance(coef, RampConfig) else (coef, coef)
        return stage


class TeacherConfig(_Block):
    """Who the teacher is, what it sees and how much of its distribution is used."""

    backend: Literal["server", "reference", "student"] = "server"
    """``server``: verl's vLLM teacher pool (``distillation.teacher_models``). ``reference``: a forward-only engine in
    the trainer's own workers, with verl's reference-worker settings (``actor_rollout_ref.ref``); no pool, no vLLM.
    ``student``: the student's own rollout servers, that is its current weights."""
    context: str | dict[str, str] = "none"
    """``none``, ``solution``, ``answer``, ``rollout``, or the path of a Jinja template (see paced_verl/contexts). With
    several teachers, one for each: ``{teacher key: context}``."""
    solution_key: str = "solution"
    """The field of ``extra_info`` that holds a problem's expert solution."""
    topk: int | Literal["full"] = 64
    """``full``: the exact divergence over the whole vocabulary, with backend: reference."""
    update: Literal["frozen", "ema", "every"] = "frozen"
    """Of backend: reference that starts as the student: ``ema`` follows the student's weights after every step,
    ``every`` copies them every ``every_steps`` steps."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """What the teacher keeps of its own weights a step: teacher ← decay · teacher + (1 − decay) · student."""
    every_steps: Annotated[int, Field(ge=1)] | None = None

    @field_validator("topk", mode="before")
    @classmethod
    def _number_or_full(cls, topk: Any) -> Any:
        if topk != "full" and not (isinstance(topk, int) and topk >= 1):
            raise ValueError("expected a number of tokens from 1 on, or full")
        return topk

    @field_validator("context")
    @classmethod
    def _exists(cls, context: str | dict[str, str]) -> str | dict[str, str]:
        for name in context.values() if isinstance(context, dict) else [context]:
            _check_context(name)
        return context

    @model_validator(mode="after")
    def _consistent(self) -> TeacherConfig:
        if (self.update == "ema") != (self.ema_decay is not None):
            raise ValueError("ema_decay goes with update: ema, and update: ema needs ema_decay (such as 0.99)")
        if (self.update == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with update: every, and update: every needs every_steps")
        if self.update != "frozen" and self.backend != "reference":
            why = "its weights are always the student's" if self.backend == "student" else "its servers load them once"
            raise ValueError(f"update: {self.update} is for backend: reference, not {self.backend} ({why})")
        if self.topk == "full" and self.backend != "reference":
            raise ValueError(f"topk: full is for backend: reference; backend: {self.backend} would send whole rows")
        return self

    def context_of(self, teacher: str) -> str:
        """The context of a teacher, by its key in ``distillation.teacher_models``."""
        return self.context if isinstance(self.context, str) else self.context[teacher]

    @property
    def contexts(self) -> tuple[str, ...]:
        """All contexts there are."""
        return (self.context,) if isinstance(self.context, str) else tuple(self.context.values())


def _check_context(context: str) -> None:
    from paced_verl.context import BUILTIN

    if context not in BUILTIN and not Path(context).is_file():
        raise ValueError(
            f"{context!r}: expected one of {', '.join(BUILTIN)}, or the path of a Jinja template; there is no such file"
        )


class TokensConfig(_Block):
    """Which tokens of a response train."""

    select: Literal["tip"] | None = None
    """``tip``: those where the student is uncertain or disagrees with the teacher (arXiv 2604.14084)."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a response's tokens that is kept."""


class RouteConfig(_Block):
    """Which losses a prompt gets, by its pass rate, beside a task reward."""

    mastered: Fraction = 1.0
    """From this pass rate on: neither distillation nor task reward."""
    hopeless: Fraction = 0.0
    """Up to this pass rate: the student's own weights under ``context`` are the teacher; no task reward."""
    context: str = "solution"

    @model_validator(mode="after")
    def _consistent(self) -> RouteConfig:
        if self.hopeless >= self.mastered:
            raise ValueError(f"hopeless={self.hopeless} must be below mastered={self.mastered}")
        _check_context(self.context)
        if self.context == "none":
            raise ValueError("context: none shows the teacher what the student sees; hopeless prompts need more")
        return self


class EndpointConfig(_Block):
    """An OpenAI-compatible endpoint that writes teacher responses for ``paced-verl targets``. Runs do not read it."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """The base URL, up to and with ``/v1``."""
    model: Annotated[str, Field(min_length=1)]
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable whose value is sent as the key; it may be unset for a server without keys."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    """Requests in flight."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a request is sent again after 408, 409, 429, 5xx, a timeout or a lost connection."""
    timeout: Positive = 600.0
    """Seconds to wait for an answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, as the server names them; null leaves one of ours out (``max_tokens``)."""
    input_price: NonNegative = 0.0
    """Per million tokens, in any currency."""
    output_price: NonNegative = 0.0


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
    endpoint: EndpointConfig | None = None
    """Have ``paced-verl targets`` ask this server instead of loading the teacher."""


class PacedConfig(_Block):
    """The whole ``paced:`` block."""

    weight: WeightConfig = WeightConfig()
    pass_rate: PassRateConfig = PassRateConfig()
    sampler: SamplerConfig = SamplerConfig()
    schedule: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    teacher: TeacherConfig = TeacherConfig()
    targets: TargetsConfig = TargetsConfig()
    tokens: TokensConfig = TokensConfig()
    route: RouteConfig | None = None

    @model_validator(mode="after")
    def _knows_pass_rates(self) -> PacedConfig:
        rates = self.pass_rate
        if self.weight.kernel != "uniform" and rates.refresh == "never" and not (rates.file or rates.from_training):
            raise ValueError("pass_rate.refresh: never needs a file to start from, or from_training: true")
        return self

    @model_validator(mode="after")
    def _measures_again(self) -> PacedConfig:
        """A prompt of weight 0 may never be drawn again, hence never measured: one visit must not decide on it."""
        rates, sampler = self.pass_rate, self.sampler
        learnt = any(stage.responses == "student" for stage in self.schedule) and self.weight.source == "table"
        dropped = sampler.explore == 0 and (sampler.skip_zero_weight or sampler.power > 0) and self.weight.can_be_zero
        if rates.refresh == "never" and rates.file is None and learnt and dropped:
            raise ValueError(
                "pass_rate.refresh: never without a file drops a prompt for ever as soon as the rollouts of one visit "
                "give it weight 0; set weight.estimate: posterior, or (with rollout.n above 1) sampler.explore above "
                "0, such as 0.1"
            )
        return self

    @classmethod
    def parse(cls, block: Mapping[str, Any]) -> PacedConfig:
        """Check the block.

        Raises:
            ConfigError: With one line a problem.
        """
        try:
            return cls.model_validate(dict(block))
        except ValidationError as error:
            # A stage that is wrong is left out of the schedule, which pydantic then also finds too short.
            problems = [problem for problem in error.errors() if problem["type"] != "too_short"] or error.errors()
            raise ConfigError("\n".join(map(_explain, problems))) from None

    def build_schedule(self, total_steps: int) -> Schedule:
        """The stages in steps.

        Raises:
            ConfigError: Stages that overlap, are empty or do not cover the run.
        """
        stages = [stage.to_stage() for stage in self.schedule]
        try:
            return Schedule.from_ends([stage.until for stage in self.schedule], stages, total_steps)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def _explain(problem: Any) -> str:
    """One pydantic problem as one line: key, value, what is wrong, what to do."""
    location = [part for part in problem["loc"] if not str(part).startswith(":")]  # tags of a union
    path = ".".join(["paced", *map(str, location)])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(known)}."
        return f"{path} is not a key that anything reads. {hint}"
    if problem["type"] == "missing":
        return f"{path} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f"={value!r}"
    return f"{path}{shown}: {message}."


def _keys_at(location: Sequence[Any]) -> list[str]:
    """The keys known at a place of the block."""
    model: type[BaseModel] = PacedConfig
    for part in location:
        if not isinstance(part, int):
            model = _model_in(model.model_fields[part].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
