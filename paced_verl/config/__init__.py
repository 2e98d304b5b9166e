"""The ``paced:`` block a person writes, checked.

Every key has a type and a range here, and here alone. Its default is here for the library and in ``configs/paced`` for
a run, where a person reads it; a test holds the two together. Anything else raises :class:`ConfigError`, one line a
problem: the key as a person writes it, the value, what was expected and what to do.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StrictBool, model_validator

from paced_verl.config.alignment import AlignmentConfig
from paced_verl.config.base import Block, ConfigError
from paced_verl.config.capability import CapabilityConfig
from paced_verl.config.pacing import KernelConfig, PassRateConfig, RouteConfig, SamplerConfig, WeightConfig
from paced_verl.config.schedule import StageConfig
from paced_verl.config.targets import EndpointConfig, TargetsConfig
from paced_verl.config.teacher import SourceContexts, TeacherConfig, TokensConfig
from paced_verl.errors import PacedError
from paced_verl.pacing.schedule import Schedule

__all__ = [
    "AlignmentConfig",
    "CapabilityConfig",
    "ConfigError",
    "EndpointConfig",
    "KernelConfig",
    "PacedConfig",
    "PassRateConfig",
    "RouteConfig",
    "SamplerConfig",
    "SourceContexts",
    "StageConfig",
    "TargetsConfig",
    "TeacherConfig",
    "TokensConfig",
    "WeightConfig",
]


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
    capability: CapabilityConfig | None = None
    alignment: AlignmentConfig = AlignmentConfig()
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

    @model_validator(mode="after")
    def _looks_ahead(self) -> PacedConfig:
        sampler = self.sampler
        if self.pass_rate.refresh == "draw" and sampler.policy != "pass_rate":
            raise ValueError(
                f"pass_rate.refresh: draw asks the sampler what it will draw, and sampler.policy: {sampler.policy} "
                "does not say; set refresh: start, or policy: pass_rate"
            )
        if self.pass_rate.refresh == "draw" and sampler.power == 0 and sampler.explore > 0:
            raise ValueError(
                "sampler.explore draws prompts that are not the next, and with pass_rate.refresh: draw and power: 0 "
                "only the next are measured; set pass_rate.max_age (they are measured again when their epoch comes), "
                "or sampler.power above 0"
            )
        return self

    @model_validator(mode="after")
    def _shares_draws(self) -> PacedConfig:
        if self.capability is None:
            return self
        if self.sampler.policy != "pass_rate":
            raise ValueError(
                f"capability shares the draws of sampler.policy: pass_rate, not of {self.sampler.policy}, which draws "
                "for itself; set policy: pass_rate, or capability: null"
            )
        if self.pass_rate.refresh == "draw":
            raise ValueError(
                "pass_rate.refresh: draw measures what one sequence of prompts will draw, and with capability there is "
                "one for each; set refresh: start, stage or every"
            )
        if self.weight.source == "group":
            raise ValueError(
                "weight.source: group divides by one mean weight, and with capability each capability has its own; set "
                "source: table"
            )
        return self

    @model_validator(mode="after")
    def _knows_the_teacher(self) -> PacedConfig:
        if self.weight.teacher is None:
            return self
        if self.sampler.policy != "pass_rate":
            raise ValueError(
                f"weight.teacher: {self.weight.teacher} is read by sampler.policy: pass_rate, not by "
                f"{self.sampler.policy}, which weighs for itself"
            )
        writes = any(stage.responses == "teacher" for stage in self.schedule)
        if not (writes or self.targets.file or self.pass_rate.teacher_samples):
            raise ValueError(
                f"weight.teacher: {self.weight.teacher} needs responses of the teacher, and no stage trains on any; "
                "set pass_rate.teacher_samples, such as 4, or targets.file (written by `paced-verl targets`)"
            )
        return self

    @model_validator(mode="after")
    def _judges_the_teacher(self) -> PacedConfig:
        rates = self.pass_rate
        starts = rates.refresh == "start" or (rates.refresh == "stage" and len(self.schedule) == 1)
        if rates.teacher_samples and (rates.refresh == "never" or (rates.file and starts)):
            raise ValueError(
                f"pass_rate.teacher_samples: {rates.teacher_samples} are judged when the prompt's own are measured, "
                f"which with refresh: {rates.refresh}{' and a file' if rates.file else ''} they never are; set "
                "refresh: draw or every, or leave teacher_samples null"
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
