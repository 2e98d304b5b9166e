"""``paced.teacher`` and ``tokens``: who teaches, what it sees, which tokens train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from paced_verl.config.base import Block, ConfigError, Number, Share, Steps, Text
from paced_verl.teacher.context import TeacherContext

MOST_TOKENS = 2**20
"""More than any vocabulary has."""


def _number_or_full(topk: Any) -> Any:
    whole = isinstance(topk, int) and not isinstance(topk, bool)
    if topk != "full" and not (whole and 1 <= topk <= MOST_TOKENS):
        raise ValueError(f"expected a number of tokens from 1 to {MOST_TOKENS}, or full")
    return topk


def _names_contexts(context: Any) -> Any:
    names = list(context.values()) if isinstance(context, Mapping) else [context]
    keys = list(context) if isinstance(context, Mapping) else []
    if not names or not all(isinstance(part, str) and part.strip() for part in (*keys, *names)):
        raise ValueError(
            "expected the name of a context, the path of a template, {teacher key: context}, or "
            "{data_source: {value: context}}"
        )
    for name in names:
        for_training(name)
    return context


def for_training(name: str) -> str:
    """The name of a context, if a run can show what it shows.

    Raises:
        ValueError: It cannot, or there is no such context.
    """
    context = TeacherContext(name)
    if not context.trains:
        raise ValueError(
            f"{name} shows {' and '.join(sorted(context.needs - {'rollout'}))}, which only `paced-verl align` has; "
            "in a run choose none, solution, answer or rollout, or a template of these"
        )
    return name


Context = Annotated[Text, AfterValidator(for_training)]


def _some(contexts: dict[str, str]) -> dict[str, str]:
    if not contexts:
        raise ValueError("expected keys with values, one at least: {value of the column data_source: context}")
    return contexts


class SourceContexts(Block):
    """What the teacher sees of a row, by the row's data source; a mapping with the key ``data_source`` is one of these.

    Told apart from ``{teacher key: context}`` by that key alone: no teacher that has a context of its own is called so.
    """

    data_source: Annotated[dict[Text, Context], AfterValidator(_some)]
    """A context for each value of the data's column ``data_source``."""
    others: Context | None = None
    """The context of every other row; null: there must be none."""

    def __str__(self) -> str:
        named = ", ".join(f"{source}: {context}" for source, context in self.data_source.items())
        return f"{named} (by data_source; others: {self.others or 'none there'})"

    def of(self, source: Any) -> str:
        """The context of a row of this data source.

        Raises:
            ConfigError: It has none.
        """
        context = self.data_source.get(str(source), self.others)
        if context is None:
            raise ConfigError(
                f"paced.teacher.context.data_source names no context for rows of data_source={source}, only for "
                f"{', '.join(self.data_source)}. Name one, or say what all others see: paced.teacher.context.others."
            )
        return context


def _by_what(context: Any) -> str:
    by_source = isinstance(context, BaseModel) or (isinstance(context, Mapping) and "data_source" in context)
    return ":source" if by_source else ":teacher"


class TeacherConfig(Block):
    """Who the teacher is, what it sees and how much of its distribution is used."""

    backend: Literal["server", "reference", "student"] = "server"
    """``server``: verl's vLLM teacher pool (``distillation.teacher_models``). ``reference``: a forward-only engine in
    the trainer's own workers, with verl's reference-worker settings (``actor_rollout_ref.ref``); no pool, no vLLM.
    ``student``: the student's own rollout servers, that is its current weights."""
    model: Literal["student"] | None = None
    """Which model: null for ``distillation.teacher_models`` (with backend: reference and none named there, the
    student's initial weights); ``student`` for these, whatever a command line names there."""
    context: Annotated[
        Annotated[str | dict[str, str], BeforeValidator(_names_contexts), Tag(":teacher")]
        | Annotated[SourceContexts, Tag(":source")],
        Discriminator(_by_what),
    ] = "none"
    """``none``, ``solution``, ``answer``, ``rollout``, or the path of a Jinja template (see
    paced_verl/teacher/templates). With several teachers, one for each: ``{teacher key: context}``. By the value of the
    data's column ``data_source``: ``{data_source: {gsm8k: solution, code: none}, others: none}``."""
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
        of = self.context
        if isinstance(of, SourceContexts):
            return (*of.data_source.values(), *([of.others] if of.others is not None else []))
        return (of,) if isinstance(of, str) else tuple(of.values())

    def context_of(self, source: Any, key: str | None) -> str:
        """The context of a row.

        Args:
            source: Its data source.
            key: Of its teacher, where there are several.

        Raises:
            ConfigError: Contexts go by data source, and this one has none.
        """
        of = self.context
        if isinstance(of, SourceContexts):
            return of.of(source)
        return of if isinstance(of, str) else of[key or ""]


ALIGNED = "aligned"
"""``tokens.select``: by a predictor that ``paced-verl align fit`` has made."""


def _token_weight(name: str) -> str:
    from paced_verl.divergence.selection import get_token_weight

    if name != ALIGNED:
        get_token_weight(name)
    return name


class TokensConfig(Block):
    """Which tokens of a response train."""

    select: Annotated[Text, AfterValidator(_token_weight)] | None = None
    """``tip``: those where the student is uncertain or disagrees with the teacher (arXiv 2604.14084); ``aligned``:
    those whose loss most likely points towards success, by ``file``; or a name that
    :func:`paced_verl.divergence.selection.register_token_weight` was given."""
    file: Text | None = None
    """The predictor of ``select: aligned``, made by ``paced-verl align fit``."""
    keep: Share = 0.5
    """Share of a response's tokens that is kept."""

    @model_validator(mode="after")
    def _has_its_predictor(self) -> TokensConfig:
        if (self.select == ALIGNED) != (self.file is not None):
            raise ValueError(f"file goes with select: {ALIGNED}, which needs one (`paced-verl align fit` makes it)")
        return self
