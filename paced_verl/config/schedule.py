"""``paced.schedule``: the stages of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from paced_verl.config.base import Block, Factor, Number, PositiveFactor, Share, Text


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
