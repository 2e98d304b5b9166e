"""The ``paced:`` block a person writes, checked.

Every key has a type and a range here, and here alone. Its default is here for the library and in ``configs/paced`` for
a run, where a person reads it; a test holds the two together. Anything else raises :class:`ConfigError`, one line a
problem: the key as a person writes it, the value, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from paced_verl.errors import PacedError, nearest
from paced_verl.pacing.instructions import Route
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.schedule import Schedule
from paced_verl.teacher.context import TeacherContext

# A number is no text and no boolean, and finite; an integer is a number. Bounds only keep out what cannot be meant.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]

Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Exponent = Annotated[Number, Field(ge=0, le=30)]
Factor = Annotated[Number, Field(ge=0, le=1e6)]
PositiveFactor = Annotated[Number, Field(ge=1e-6, le=1e6)]
PriorCount = Annotated[Number, Field(ge=1e-3, le=1e4)]
"""As far as `fit_prior` goes and more; with these exponents every posterior weight is above 0 in float64."""
Temperature = Annotated[Number, Field(ge=0, le=10)]
Steps = Annotated[Whole, Field(ge=1, le=10**9)]
Price = Annotated[Number, Field(ge=0, le=1e9)]

MOST_TOKENS = 2**20
"""More than any vocabulary has."""


class ConfigError(PacedError):
    """A configuration that cannot run as written. The message is for the person who wrote it."""


class Block(BaseModel):
    """Keys with values, in a configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, block: Any, root: str) -> Self:
        """Check a block.

        Args:
            block: A mapping, of OmegaConf or plain.
            root: The key it stands under.

        Raises:
            ConfigError: With one line a problem.
        """
        try:
            if OmegaConf.is_config(block):
                block = OmegaConf.to_container(block, resolve=True, throw_on_missing=True)
            return cls.model_validate(block)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key or root}: {str(error).splitlines()[0].rstrip('.')}.") from None
        except ValidationError as error:
            lines = [explain(problem, cls, root) for problem in _own_problems(error)]
            raise ConfigError("\n".join(dict.fromkeys(lines))) from None


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


class WeightConfig(KernelConfig):
    """How a prompt's pass rate becomes its weight in the loss. ``prior: null`` is fitted (empirical Bayes)."""

    fit: Literal["moments"] | None = None
    """``moments`` takes α and β from the table's mean and variance instead of from the keys above."""
    source: Literal["table", "group"] = "table"
    """``table``: the pass rate known when the prompt is drawn. ``group``: that of the step's own rollouts of it."""

    @model_validator(mode="after")
    def _consistent(self) -> WeightConfig:
        if self.fit and self.kernel != "beta":
            raise ValueError(f"fit: {self.fit} sets the exponents of kernel: beta, not of kernel: {self.kernel}")
        if self.source == "group" and (self.fit or (self.estimate == "posterior" and self.prior is None)):
            raise ValueError("source: group fits nothing to a table: set alpha and beta, and prior for a posterior")
        return self

    @property
    def can_be_zero(self) -> bool:
        """Whether there are pass rates that weigh 0."""
        return self.estimate == "empirical" and not self.to_kernel().of_rate(np.linspace(0, 1, 101)).all()


class PassRateConfig(Block):
    """How and when pass rates are estimated."""

    samples: Annotated[Whole, Field(ge=1, le=1024)] = 8
    """Responses K a prompt."""
    temperature: Temperature = 1.0
    refresh: Literal["start", "stage", "every", "never"] = "stage"
    every_steps: Steps | None = None
    at_end: StrictBool = False
    """Estimate once more after the last step, for the record."""
    from_training: StrictBool = True
    """Also learn, for free, from the scored rollouts that train."""
    decay: Share = 0.8
    """What an observation keeps of a prompt's older counts; 1 keeps them all, and lags behind a student that learns."""
    threshold: Number = 0.5
    """A response is correct from this score on (verl's ``acc`` where the reward function gives it, else the reward)."""
    file: Text | None = None
    """Start from this table instead of estimating at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> PassRateConfig:
        if (self.refresh == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with refresh: every, and refresh: every needs every_steps")
        return self


class SamplerConfig(Block):
    """Which prompts come next. ``power`` γ draws q ∝ w^γ and leaves w^(1−γ) to the loss: same expected gradient."""

    power: Annotated[Number, Field(ge=0, le=10)] = 0.0
    explore: Fraction = 0.0
    skip_zero_weight: StrictBool = True
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0


def _tag(value: Any) -> str:
    """Which side of "a plain value, or a block" a value is."""
    return ":two" if isinstance(value, Mapping | BaseModel) else ":one"


class InterpolationConfig(Block):
    """A divergence that turns linearly into another one: (1−λ) from + λ to, λ from 0 to 1."""

    start: Text = Field(alias="from")
    end: Text = Field(alias="to")
    over: Share = 1.0
    """Share of the stage after which only ``to`` is left."""

    @model_validator(mode="after")
    def _known(self) -> InterpolationConfig:
        from paced_verl.divergence import get_divergence

        for name in (self.start, self.end):
            get_divergence(name)
        return self


class RampConfig(Block):
    """A number that moves linearly over a stage."""

    start: Factor = Field(alias="from")
    end: Factor = Field(alias="to")


def _end_of_stage(until: Any) -> int | float:
    if isinstance(until, bool) or not isinstance(until, int | float):
        raise ValueError("expected a share of the run such as 0.5 (1.0: its end), or a number of steps such as 100")
    if isinstance(until, float) and not 0 < until <= 1:
        raise ValueError("a fraction of the run lies in (0, 1]; a number of steps is written without a decimal point")
    if isinstance(until, int) and until < 1:
        raise ValueError("a stage ends at step 1 or later")
    return until


class StageConfig(Block):
    """One stage of the schedule."""

    until: Annotated[int | float, BeforeValidator(_end_of_stage)]
    """End of the stage: a float is a fraction of the run (1.0 = the end), an integer a training step."""
    divergence: Annotated[
        Annotated[Text, Tag(":one")] | Annotated[InterpolationConfig, Tag(":two")], Discriminator(_tag)
    ]
    responses: Literal["teacher", "student"]
    parameters: dict[str, Number] = Field(default_factory=dict)
    lr_factor: PositiveFactor = 1.0
    coef: Annotated[Annotated[Factor, Tag(":one")] | Annotated[RampConfig, Tag(":two")], Discriminator(_tag)] = 1.0
    """Factor of the divergence beside verl's task loss; ``{from, to}`` moves linearly over the stage."""

    @model_validator(mode="after")
    def _trains(self) -> StageConfig:
        coef = self.coef
        if not (coef.start or coef.end if isinstance(coef, RampConfig) else coef):
            raise ValueError(
                "coef: 0 throughout trains nothing of the divergence; beside a task reward that is plain RL, which "
                "needs no teacher. Leave the stage out, or run verl without +paced"
            )
        return self

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
        """What :class:`paced_verl.pacing.schedule.Stage` needs, without its place in the run."""
        stage = self.model_dump(include={"responses", "parameters", "lr_factor"})
        if isinstance(self.divergence, InterpolationConfig):
            stage |= {"divergence": self.divergence.start, "towards": self.divergence.end, "over": self.divergence.over}
        else:
            stage["divergence"] = self.divergence
        coef = self.coef
        stage["coef"] = (coef.start, coef.end) if isinstance(coef, RampConfig) else (coef, coef)
        return stage


def _number_or_full(topk: Any) -> Any:
    whole = isinstance(topk, int) and not isinstance(topk, bool)
    if topk != "full" and not (whole and 1 <= topk <= MOST_TOKENS):
        raise ValueError(f"expected a number of tokens from 1 to {MOST_TOKENS}, or full")
    return topk


def _names_contexts(context: Any) -> Any:
    names = list(context.values()) if isinstance(context, Mapping) else [context]
    keys = list(context) if isinstance(context, Mapping) else []
    if not names or not all(isinstance(part, str) and part.strip() for part in (*keys, *names)):
        raise ValueError("expected the name of a context, the path of a template, or {teacher key: context}")
    for name in names:
        TeacherContext(name)
    return context


class TeacherConfig(Block):
    """Who the teacher is, what it sees and how much of its distribution is used."""

    backend: Literal["server", "reference", "student"] = "server"
    """``server``: verl's vLLM teacher pool (``distillation.teacher_models``). ``reference``: a forward-only engine in
    the trainer's own workers, with verl's reference-worker settings (``actor_rollout_ref.ref``); no pool, no vLLM.
    ``student``: the student's own rollout servers, that is its current weights."""
    model: Literal["student"] | None = None
    """Which model: null for ``distillation.teacher_models`` (with backend: reference and none named there, the
    student's initial weights); ``student`` for these, whatever a command line names there."""
    context: Annotated[str | dict[str, str], BeforeValidator(_names_contexts)] = "none"
    """``none``, ``solution``, ``answer``, ``rollout``, or the path of a Jinja template (see
    paced_verl/teacher/templates). With
    several teachers, one for each: ``{teacher key: context}``."""
    solution_key: Text = "solution"
    """The field of ``extra_info`` that holds a problem's expert solution."""
    topk: Annotated[int | Literal["full"], BeforeValidator(_number_or_full)] = 64
    """``full``: the exact divergence over the whole vocabulary, with backend: reference."""
    update: Literal["frozen", "ema", "every"] = "frozen"
    """Of backend: reference that starts as the student: ``ema`` follows the student's weights after every step,
    ``every`` copies them every ``every_steps`` steps."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """What the teacher keeps of its own weights a step: teacher ← decay · teacher + (1 − decay) · student."""
    every_steps: Steps | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TeacherConfig:
        if (self.update == "ema") != (self.ema_decay is not None):
            raise ValueError("ema_decay goes with update: ema, and update: ema needs ema_decay (such as 0.99)")
        if (self.update == "every") != (self.every_steps is not None):
            raise ValueError("every_steps goes with update: every, and update: every needs every_steps")
        if self.model == "student" and self.backend != "reference":
            raise ValueError(f"model: student is for backend: reference, not {self.backend}")
        if self.update != "frozen" and self.backend != "reference":
            why = "its weights are always the student's" if self.backend == "student" else "its servers load them once"
            raise ValueError(f"update: {self.update} is for backend: reference, not {self.backend} ({why})")
        if self.topk == "full" and self.backend != "reference":
            raise ValueError(f"topk: full is for backend: reference; backend: {self.backend} would send whole rows")
        return self

    @property
    def contexts(self) -> tuple[str, ...]:
        """All contexts there are."""
        return (self.context,) if isinstance(self.context, str) else tuple(self.context.values())


class TokensConfig(Block):
    """Which tokens of a response train."""

    select: Literal["tip"] | None = None
    """``tip``: those where the student is uncertain or disagrees with the teacher (arXiv 2604.14084)."""
    keep: Share = 0.5
    """Share of a response's tokens that is kept."""


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


class EndpointConfig(Block):
    """An OpenAI-compatible endpoint that writes teacher responses for ``paced-verl targets``. Runs do not read it."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#:]+\S*$")]
    """The base URL, up to and with ``/v1``."""
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(min_length=1)] = "OPENAI_API_KEY"
    """Name of the environment variable whose value is sent as the key; it may be unset for a server without keys."""
    concurrency: Annotated[Whole, Field(ge=1, le=10_000)] = 32
    """Requests in flight."""
    retries: Annotated[Whole, Field(ge=0, le=100)] = 5
    """How often a request is sent again after 408, 409, 429, 5xx, a timeout or a lost connection."""
    timeout: Annotated[Number, Field(gt=0, le=86_400)] = 600.0
    """Seconds to wait for an answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, as the server names them; null leaves one of ours out (``max_tokens``)."""
    input_price: Price = 0.0
    """Per million tokens, in any currency."""
    output_price: Price = 0.0


class TargetsConfig(Block):
    """Where teacher responses y_T come from."""

    column: Annotated[str, Field(min_length=1)] | None = None
    """Take them from this field of the data (a dotted path such as ``extra_info.response``)."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """Take them from, and add generated ones to, this parquet file (made by ``paced-verl targets``, or by a run)."""
    keep: Literal["all", "correct"] = "all"
    """``correct`` keeps a generated response only if the reward says so."""
    attempts: Annotated[Whole, Field(ge=1, le=1000)] = 1
    """How often to ask for a response that is kept; then the prompt is skipped and counted."""
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    endpoint: EndpointConfig | None = None
    """Have ``paced-verl targets`` ask this server instead of loading the teacher."""


class PacedConfig(Block):
    """The whole ``paced:`` block."""

    weight: WeightConfig = WeightConfig()
    pass_rate: PassRateConfig = PassRateConfig()
    sampler: SamplerConfig = SamplerConfig()
    schedule: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    teacher: TeacherConfig = TeacherConfig()
    targets: TargetsConfig = TargetsConfig()
    tokens: TokensConfig = TokensConfig()
    route: RouteConfig | None = None
    strict: StrictBool = False
    """Whether a setting of verl's that would be replaced or ignored is an error."""

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
    def parse(cls, block: Any) -> PacedConfig:
        """Check the block; see :meth:`Block.read`."""
        return cls.read(block, "paced")

    def build_schedule(self, total_steps: int) -> Schedule:
        """The stages in steps.

        Raises:
            ConfigError: Stages that overlap, are empty or do not cover the run.
        """
        stages = [stage.to_stage() for stage in self.schedule]
        try:
            return Schedule.from_ends([stage.until for stage in self.schedule], stages, total_steps)
        except PacedError as error:
            raise ConfigError(str(error)) from None


def _own_problems(error: ValidationError) -> list[Any]:
    """All problems but pydantic's echoes: a wrong stage is left out of the schedule, which is then too short."""
    problems = error.errors()
    places = [problem["loc"] for problem in problems]

    def is_echo(problem: Any) -> bool:
        place = problem["loc"]
        return problem["type"] == "too_short" and any(p != place and p[: len(place)] == place for p in places)

    return [problem for problem in problems if not is_echo(problem)]


def explain(problem: Any, model: type[BaseModel], root: str) -> str:
    """One problem of pydantic's as one line: key, value, what is wrong, what to do.

    Args:
        problem: One of ``ValidationError.errors()``.
        model: The block that was checked.
        root: The key it stands under.
    """
    location = [part for part in problem["loc"] if not str(part).startswith((":", "["))]  # tags of a union, "[key]"
    path = ".".join([root, *map(str, location)])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        known = _keys(_model_at(model, location[:-1]))
        return f"{path} is not a key that anything reads. {nearest(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"{path} is missing."
    value = problem["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f"={_written(value)}"
    expected = _expected(problem, _model_at(model, location))
    return f"{path}{shown}: {expected}" + ("" if expected.endswith((".", "?")) else ".")


_EXPECTED = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected text, not nothing",
    "string_pattern_mismatch": "expected an address such as https://host/v1",
    "tuple_type": "expected a list",
    "dict_type": "expected keys with values: {{key: value}}",
    "too_short": "expected a list of {min_length} or more",
    "too_long": "expected a list of {max_length}",
}


def _expected(problem: Any, model: type[BaseModel]) -> str:
    """What a problem's key should have held, in this file's words."""
    if problem["type"] == "model_type":
        return f"expected a block with the keys {', '.join(_keys(model))}"
    if problem["type"] in _EXPECTED:
        return _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
    words: str = problem["msg"].removeprefix("Value error, ")
    for bound in ("greater", "less"):
        words = words.replace(f"Input should be {bound}", f"expected a number {bound}")
    return words.replace("Input should be", "expected")


def _written(value: Any, most: int = 200) -> str:
    """A value as YAML would have it, on one line."""
    words = [word for plain, word in ((None, "null"), (True, "true"), (False, "false")) if value is plain]
    text = words[0] if words else repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys of a block, as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """The block at a place within a block, or the nearest around it."""
    for part in location:
        field = next((field for name, field in model.model_fields.items() if part in (name, field.alias)), None)
        model = (field and _model_in(field.annotation)) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, through unions, tuples and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
