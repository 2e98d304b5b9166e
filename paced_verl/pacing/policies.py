"""Who draws, by the name that ``paced.sampler.policy`` gives."""

from __future__ import annotations

from collections.abc import Callable

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.mix import MixSampler
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import PromptSampler, SamplerSettings
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.pacing.window import WindowSampler
from paced_verl.registry import registered, registering

MakeSampler = Callable[[PassRateTable, Kernel, SamplerSettings], PromptSampler]
_POLICIES: dict[str, MakeSampler] = {}


def register_sampler(name: str) -> Callable[[MakeSampler], MakeSampler]:
    """Decorator: make a sampler known as ``paced.sampler.policy``.

    >>> @register_sampler("in_order")
    ... def in_order(table, kernel, settings):
    ...     return InOrder(len(table), settings.epoch_size)

    Raises:
        ValueError: The name is taken.
    """
    return registering(_POLICIES, "sampler", name)


def get_sampler(name: str) -> MakeSampler:
    """What makes a registered sampler.

    Raises:
        PacedError: Nobody has registered it.
    """
    return registered(_POLICIES, "sampler", name)


@register_sampler("pass_rate")
def pass_rate_sampler(table: PassRateTable, kernel: Kernel, settings: SamplerSettings) -> PromptSampler:
    """The sampler of a run, by default."""
    given = dict(vars(settings))
    del given["window"], given["groups"]
    if settings.groups is not None:
        groups = settings.groups
        return MixSampler(table, kernel, groups=groups.of, names=groups.names, mix=groups.mix, **given)
    if settings.window is None:
        return PassRateSampler(table, kernel, **given)
    return WindowSampler(table, kernel, settings.window, **given)
