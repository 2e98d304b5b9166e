"""``paced.alignment``: what ``paced-verl align`` measures, and how much it may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from paced_verl.config.base import Block, Number, Steps, Text, Whole
from paced_verl.errors import nearest
from paced_verl.teacher.context import TeacherContext


def _divergence(name: str) -> str:
    from paced_verl.divergence import get_divergence

    get_divergence(name)
    return name


def _context(name: str) -> str:
    TeacherContext(name)
    return name


def _null(name: str) -> str:
    from paced_verl.alignment.distil import NULLS

    if name not in NULLS and name != "shuffle":
        raise ValueError(f"there is no such null teacher. {nearest(name, [*NULLS, 'shuffle'])}")
    return name


class BudgetConfig(Block):
    """When to stop; whatever comes first. What is measured until then is kept, and counts."""

    rollouts: Steps | None = None
    """Forced continuations, free rollouts not counted."""
    tokens: Steps | None = None
    """That the student writes for them."""
    minutes: Annotated[Number, Field(gt=0)] | None = 30.0
    half_width: Annotated[Number, Field(gt=0)] | None = None
    """Of every teacher's 95 % interval: once all are as narrow, that is enough."""


class AlignmentConfig(Block):
    """What is measured."""

    questions: Steps = 64
    """Prompts of the training data, drawn by ``sampler.seed``; equal numbers of each fifth of the pass rate where a
    table is known (``pass_rate.file``)."""
    rollouts: Steps = 64
    """Free responses of the student to each."""
    nodes: Steps = 32
    """Positions of these a question, over depth windows that double."""
    visits: Annotated[Whole, Field(ge=2)] = 40
    """Continuations a token, on average; more where two teachers would move the success most."""
    threshold: Annotated[Number, Field(ge=0, lt=1)] = 0.02
    """A token counts if the student or a teacher says it with more than this probability."""
    tokens: Annotated[Whole, Field(ge=2)] = 8
    """Of a node at most."""
    support: Literal["kept", "full"] = "kept"
    """``kept``: probabilities of these tokens alone, made to sum to 1 (the paper). ``full``: all others are one more
    token, whose success is taken for the node's own."""
    divergence: Annotated[tuple[Annotated[Text, AfterValidator(_divergence)], ...], Field(min_length=1)] = (
        "reverse_kl",
        "forward_kl",
    )
    contexts: Annotated[tuple[Annotated[Text, AfterValidator(_context)], ...], Field(min_length=1)] = ("none",)
    """What a teacher sees. Every model (those of ``distillation.teacher_models``, and the student itself) under every
    context is a teacher, but the student that sees nothing more."""
    nulls: tuple[Annotated[Text, AfterValidator(_null)], ...] = ("sharpen", "suppress", "shuffle")
    """Teachers that know nothing, to compare with: ``sharpen``, ``suppress``, ``uniform``, ``shuffle`` (another
    question's teacher)."""
    truncated: Literal["fail", "drop"] = "fail"
    """What a response that reaches the length limit without an end is."""
    every_steps: Steps | None = None
    """Also within a run, after every so many steps, with the weights of that step; null: never."""
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        for key in ("divergence", "contexts", "nulls"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ValueError(f"{key}={list(names)}: a name is there twice")
        return self

    @model_validator(mode="after")
    def _costs_what_is_said(self) -> Self:
        if self.every_steps is not None and self.budget.rollouts is None:
            raise ValueError(
                f"every_steps: {self.every_steps} measures within a run, which waits for it: it needs "
                "budget.rollouts, such as 1000, what one measurement may force at most"
            )
        return self
