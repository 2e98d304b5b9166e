"""The face of a sampler: what a run asks of it, whichever ``paced.sampler.policy`` names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.reliability import Reliability

IntArray = npt.NDArray[np.int64]
RowArray = npt.NDArray[np.int32]  # a table has fewer than 2^31 rows


class PromptSampler(Protocol):
    """Draws prompts, as torch's and torchdata's data loaders ask it to, and weighs what it has drawn.

    :class:`~paced_verl.pacing.sampler.PassRateSampler` is the one that a run has by default.
    """

    @property
    def mean_weight(self) -> float | None:
        """What raw weights are divided by, so that their mean over all prompts is 1; ``None``: not known yet."""

    def draw(self, n: int) -> IntArray:
        """The next n prompts, int64 (n,)."""

    def loss_weights(self, prompts: IntArray) -> npt.NDArray[np.float32]:
        """The loss weight of each prompt, float32 (n,), under which it was drawn: called before the next ``update``."""

    def update(self, prompts: npt.ArrayLike) -> None:
        """The table has observed these prompts."""

    def refresh(self, kernel: Kernel | None = None, table: PassRateTable | None = None) -> None:
        """Go on with another kernel or table."""

    def __iter__(self) -> Iterator[int]:
        """What is left of the current pass, one prompt at a time; then a new pass."""

    def __len__(self) -> int:
        """Prompts of a pass."""

    def state_dict(self) -> dict[str, Any]:
        """Everything but the table, as JSON would hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, or raise ValueError."""

    def metrics(self, step: int) -> dict[str, float]:
        """Numbers for the log."""


class LooksAhead(PromptSampler, Protocol):
    """A sampler that draws what was measured, and says what that takes."""

    def missing(self, step: int, draws: int) -> IntArray:
        """Prompts that must be measured before ``draws`` can be drawn in a step, each once: int64."""

    def ahead(self, step: int, draws: int) -> IntArray:
        """Prompts to be measured together, so that up to ``draws`` of the draws to come need not wait: int64."""


@dataclass(frozen=True)
class Window:
    """How far a run looks ahead that measures prompts when they are about to be drawn.

    Attributes:
        batch: Prompts of a batch B.
        ahead: Batches that are measured before they can be drawn.
        max_age: Steps after which a pass rate is measured again; ``None``: never.
    """

    batch: int
    ahead: int = 2
    max_age: int | None = None


@dataclass(frozen=True)
class Groups:
    """Capabilities that share the draws.

    Attributes:
        names: C.
        of: Each prompt's, int16 (N,), as the place of its name; −1: never drawn.
        mix: Shares to begin with, (C,).
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.int16]
    mix: npt.NDArray[np.float64]


@dataclass(frozen=True)
class SamplerSettings:
    """What a run asks of its sampler.

    Attributes:
        power, explore, seed: As ``paced.sampler`` has them.
        skip_zero_weight: Whether prompts of weight 0 may be left out.
        epoch_size: Prompts of a pass.
        teacher: What the teacher's own pass rates make of a weight.
        groups: Where several capabilities share the draws.
        window: Where prompts are measured when they are about to be drawn; the sampler is then a :class:`LooksAhead`.
    """

    power: float
    explore: float
    seed: int
    skip_zero_weight: bool
    epoch_size: int
    window: Window | None = None
    teacher: Reliability | None = None
    groups: Groups | None = None
