"""A sampler that draws only what has been measured, and says which prompts that takes: a window along the epochs."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import IntArray, Window
from paced_verl.pacing.sampler import FloatArray, PassRateSampler

_LEAST_SHARE = 1 / 16  # of candidates that train: where fewer do, they are looked for in several rounds


class WindowSampler(PassRateSampler):
    """Draws from the next candidates in the order of the epochs, once their pass rates are known.

    power 0: the candidates in their order, without those of weight 0 (if skip_zero_weight), as in
        :class:`PassRateSampler`; so that w̃ is weighed by the share of candidates that train, as far as it is known.
    power γ > 0: batches of B from a window of the next M = ahead · B candidates, which then moves on by B:

            q_i = (1 − explore) · m_i / Σ_window m + explore / M        loss weight_i = w̃_i / (M q_i)

        with m = w^γ. Draws are systematic (one uniform number a batch): a candidate comes ⌊B q_i⌋ or ⌈B q_i⌉ times.

    Every candidate is in equally many windows, so a finite window leaves no bias where weights are known: the expected
    gradient over an epoch is (1/N) Σ w̃_i g_i. What remains is that the mean weight in w̃ is that of the prompts
    measured so far, an error of O(1/√measured) in the scale of the gradient, not in its direction; and that windows in
    which nothing trains are passed over, which lengthens it by one over the share of the others.

    ``missing`` and ``ahead`` say what to measure; a candidate that was not measured weighs as the average one.
    """

    def __init__(
        self, table: PassRateTable, kernel: Kernel, window: Window, *, explore: float = 0.0, **settings: Any
    ) -> None:
        if explore > 0 and settings.get("power", 0.0) == 0:
            raise ValueError(f"sampler: explore={explore} needs power > 0 where prompts are measured when drawn")
        self.window = window
        self._pending: deque[tuple[int, float]] = deque()  # drawn with their batch, not handed out yet
        self._untold: deque[tuple[int, float]] = deque()  # handed out, their loss weights not asked for yet
        super().__init__(table, kernel, explore=explore, **settings)

    def missing(self, step: int, draws: int) -> IntArray:
        """Candidates that must be measured before ``draws`` prompts can be drawn, each once: int64."""
        if self.power == 0:
            return self._unknown_of(self._stretch(draws, step, share=1.0), step)
        batches = -(-(draws - len(self._pending)) // self.window.batch)
        return self._unknown_of(self._windows(batches, step), step)

    def ahead(self, step: int, draws: int) -> IntArray:
        """Candidates to be measured together, so that up to ``draws`` of the draws to come need not wait for them."""
        if self.power > 0:
            return self.missing(step, min(draws, self.window.batch))
        known = self.size - float(self._sums[3].sum())
        share = max(_LEAST_SHARE, float(self._sums[2].sum()) / known) if known else 1.0
        draws = min(draws, self.window.ahead * self.window.batch)
        return self._unknown_of(self._stretch(draws, step, share), step)

    def draw(self, n: int) -> IntArray:
        """The next n prompts, int64[n]. Raises ValueError if all weights are 0."""
        if self.power == 0:
            return super().draw(n)
        while len(self._pending) < n:
            self._pending.extend(self._draw_batch())
        drawn = [self._pending.popleft() for _ in range(n)]
        self._untold.extend(drawn)
        return np.array([prompt for prompt, _ in drawn], np.int64)

    def loss_weights(self, prompts: IntArray) -> npt.NDArray[np.float32]:
        """w̃_i / (M q_i), float32; exactly 0 where w is 0. At power > 0 of prompts in the order they were drawn in.

        Raises:
            ValueError: They are not the prompts that were drawn since this was last asked.
        """
        if self.power == 0:
            return super().loss_weights(prompts)
        drawn = [self._untold.popleft() for _ in range(min(len(prompts), len(self._untold)))]
        if [prompt for prompt, _ in drawn] != prompts.tolist():
            raise ValueError("sampler: loss weights are those of a draw: ask for them once, in the order drawn")
        w = self.weights(prompts)
        mass = np.array([mass for _, mass in drawn])
        scale = self._mean * ((1 - self.explore) * self._mass(w) / mass + self.explore)
        return np.divide(w, scale, out=np.zeros_like(w), where=w > 0).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the table; numbers for what is left of a batch, if its draw was cut short."""
        return super().state_dict() | {"pending": [list(drawn) for drawn in self._pending]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`PassRateSampler.load_state_dict`."""
        super().load_state_dict(state)
        self._pending = deque((int(prompt), float(mass)) for prompt, mass in state["pending"])
        self._untold.clear()

    def metrics(self, step: int) -> dict[str, float]:
        """See :meth:`PassRateSampler.metrics`; there is no q over all prompts, hence no entropy of it."""
        metrics = super().metrics(step)
        del metrics["paced/sampler/entropy"]
        return metrics

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"batch": self.window.batch, "ahead": self.window.ahead}

    def _sum_all(self) -> None:
        super()._sum_all()
        _, _, positive, unknown = self._sums.sum(axis=1)
        if self.power == 0 and self.skip_zero_weight and positive > 0:
            # Those of weight 0 are passed over once they are measured: of the others, as many will be.
            self._total = float(positive * self.size / (self.size - unknown))

    def _unknown_of(self, candidates: IntArray, step: int) -> IntArray:
        return np.unique(candidates[~self._is_known(candidates, step)])

    def _is_known(self, prompts: IntArray, step: int) -> npt.NDArray[np.bool_]:
        """Whether these were measured, and within max_age."""
        seen = self.table.last_seen[prompts]
        oldest = -1 if self.window.max_age is None else max(-1, step - self.window.max_age - 1)
        return seen > oldest

    def _next(self, count: int) -> IntArray:
        """The next candidates, which stay the next."""
        epoch, position = self._epoch, self._position
        parts: list[IntArray] = []
        while count > 0:
            parts.append(self._look_ahead()[:count])
            self._position += len(parts[-1])
            count -= len(parts[-1])
        self._epoch, self._position = epoch, position
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _stretch(self, draws: int, step: int, share: float) -> IntArray:
        """The next candidates, as many as it takes for ``draws`` of them to train; of unknown ones, ``share`` does."""
        count = min(self.size, math.ceil(draws / share))
        while count > 0:
            candidates = self._next(count)
            trains = np.where(self._is_known(candidates, step), self._weights[candidates] != 0, share)
            reached = np.cumsum(trains if self.skip_zero_weight else np.ones(len(candidates))) >= draws - 1e-9
            if reached.any() or count == self.size:
                return candidates[: int(reached.argmax()) + 1] if reached.any() else candidates
            count = min(self.size, 2 * count)
        return np.empty(0, np.int64)

    def _windows(self, batches: int, step: int) -> IntArray:
        """The candidates of the next windows that batches are drawn from."""
        size, move = self.window.ahead * self.window.batch, self.window.batch
        start, found = 0, [np.empty(0, np.int64)]
        while len(found) <= batches and start < self.size + size:
            candidates = self._next(start + size)[start:]
            if self._mass(self.weights(candidates)).any() or not self._is_known(candidates, step).all():
                found.append(candidates)
            start += move
        return np.concatenate(found)

    def _draw_batch(self) -> list[tuple[int, float]]:
        """A batch, and with each prompt the mean m of the window it was drawn from; the window moves on."""
        self._check_weights()
        candidates, mass = self._open_window()
        probability = (1 - self.explore) * mass / mass.sum() + self.explore / len(mass)
        points = (self._rng.random() + np.arange(self.window.batch)) / self.window.batch
        reached = np.cumsum(probability)
        chosen = candidates[np.searchsorted(reached, points * reached[-1], side="right")]
        self._move()
        return [(prompt, float(mass.mean())) for prompt in chosen.tolist()]

    def _open_window(self) -> tuple[IntArray, FloatArray]:
        """The next window in which something trains, with the m of its candidates."""
        for _ in range(-(-self.size // self.window.batch) + 1):
            candidates = self._next(self.window.ahead * self.window.batch)
            mass = self._mass(self.weights(candidates))
            if mass.any():
                return candidates, mass
            self._move()
        raise AssertionError("a weight is positive, and every candidate was looked at")

    def _move(self) -> None:
        position = self._position + self.window.batch
        self._epoch, self._position = self._epoch + position // self.size, position % self.size
