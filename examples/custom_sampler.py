r"""A sampler of your own, without touching paced-verl: a curriculum, the problems that the student solves first.

    PYTHONPATH=examples VERL_USE_EXTERNAL_MODULES=custom_sampler \
        python -m verl.trainer.main_ppo … +paced=two_stage paced.sampler.policy=easy_first

Every pass goes through all prompts once, by descending pass rate as it is known when the pass begins, and the loss
weighs each by the kernel, as the paper does. A prompt that nobody has tried counts as one that is solved half the time.

What comes out: "sampler: easy_first" in the plan, and `easy_first/pass_rate`, the rate of the last prompt that was
drawn, which falls over a pass.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.policies import register_sampler
from paced_verl.pacing.protocol import SamplerSettings


class EasyFirst:
    """Prompts by descending pass rate. What a run asks of it: :class:`paced_verl.pacing.protocol.PromptSampler`."""

    def __init__(self, table: PassRateTable, kernel: Kernel, epoch_size: int):
        self.table, self.kernel, self.epoch_size = table, kernel, epoch_size
        self.order, self.position = self._sorted(), 0

    def _sorted(self) -> npt.NDArray[np.int64]:
        return np.argsort(-np.nan_to_num(self.table.rates(), nan=0.5), kind="stable")

    def _weights(self) -> npt.NDArray[np.float64]:
        weights = self.kernel(self.table.successes, self.table.samples)
        known = ~np.isnan(weights)
        return np.where(known, weights, weights[known].mean() if known.any() else 1.0)

    @property
    def mean_weight(self) -> float | None:
        return float(self._weights().mean()) or None

    def draw(self, n: int) -> npt.NDArray[np.int64]:
        drawn = []
        for _ in range(n):
            if self.position == self.epoch_size:
                self.order, self.position = self._sorted(), 0
            drawn.append(self.order[self.position])
            self.position += 1
        return np.array(drawn, np.int64)

    def loss_weights(self, prompts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        weights = self._weights()
        return (weights[prompts] / (weights.mean() or 1.0)).astype(np.float32)

    def update(self, prompts: npt.ArrayLike) -> None:
        """Weights are computed when they are asked for."""

    def refresh(self, kernel: Kernel | None = None, table: PassRateTable | None = None) -> None:
        self.kernel, self.table = kernel or self.kernel, table or self.table
        if self.position == 0:
            self.order = self._sorted()

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.epoch_size - self.position % self.epoch_size):
            yield int(self.draw(1)[0])

    def __len__(self) -> int:
        return self.epoch_size

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order.tolist(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = np.array(state["order"], np.int64), state["position"]

    def metrics(self, step: int) -> dict[str, float]:
        return {"easy_first/pass_rate": float(self.table.rates(self.order[max(self.position - 1, 0)][None])[0])}


@register_sampler("easy_first")
def easy_first(table: PassRateTable, kernel: Kernel, settings: SamplerSettings) -> EasyFirst:
    """What a run calls once, with its table, its kernel and ``paced.sampler``."""
    return EasyFirst(table, kernel, settings.epoch_size)
