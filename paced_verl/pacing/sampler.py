"""Which prompts come next, and what their loss must be multiplied by."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import IntArray, RowArray
from paced_verl.pacing.reliability import Reliability

_BLOCK = 256  # prompts that share one entry of the sums a draw searches
_PART = 256 * _BLOCK  # prompts handled at once in a pass over all of them; its temporaries fit a core's cache
_ROWS = 64  # blocks searched at once; their weights fit a core's cache
_AHEAD = 1024  # positions of an epoch's order computed at once

FloatArray = npt.NDArray[np.float64]


class PassRateSampler:
    """Draws prompts with probability q and gives the loss weight that makes up for it.

    The expected gradient is (1/N) Σ w̃_i g_i for every setting, with w̃ = w / mean(w) over all N prompts:

        q_i = (1 − explore) · m_i / Σ m + explore / N        loss weight_i = w̃_i / (N q_i)

    power γ = 0: m is 1 (0 where w is 0, if skip_zero_weight). Prompts come in epochs without replacement, in a
        pseudo-random order of (seed, epoch); this is the paper's uniform sampling with a weighted loss.
    power γ > 0: m = w^γ, independent draws. γ = 1 puts all of the weight into the sampling.
    explore: share of draws that are uniform over all prompts, so that prompts of weight 0 are measured again.
    skip_zero_weight: do not draw prompts that would train nothing; a γ > 0 never draws them.
    teacher: what the teacher's own pass rates make of w.
    rows: the rows of the table that are this sampler's prompts 0 … N−1; by default all of them, in their order.
    epoch_size: number of prompts in one pass of ``iter()``, by default N. It is independent of the epochs at γ = 0: a
        multiple of the batch size keeps a ``drop_last`` loader from discarding prompts.

    A prompt whose weight the kernel does not know (NaN: never sampled) gets the mean weight of the others, 1 if that
    is 0. Memory is 4 bytes a prompt on top of the table's 12; only `refresh` and
    `metrics` look at all N prompts.

    Usable as ``sampler=`` of a torch DataLoader. With torchdata's StatefulDataLoader (num_workers=0) a restored run
    goes on as if undisturbed, provided the table is restored first; weights are recomputed from it.
    """

    def __init__(
        self,
        table: PassRateTable,
        kernel: Kernel,
        *,
        power: float = 0.0,
        explore: float = 0.0,
        skip_zero_weight: bool = True,
        seed: int = 0,
        epoch_size: int | None = None,
        teacher: Reliability | None = None,
        rows: RowArray | None = None,
    ) -> None:
        if not 0 <= power < math.inf:
            raise ValueError(f"sampler: power must be >= 0, got {power}")
        if not 0 <= explore <= 1:
            raise ValueError(f"sampler: explore must lie in [0, 1], got {explore}")
        if seed < 0:
            raise ValueError(f"sampler: seed must be >= 0, got {seed}")
        if epoch_size is not None and epoch_size < 1:
            raise ValueError(f"sampler: epoch_size must be >= 1, got {epoch_size}")
        self.table, self.kernel, self.teacher, self.rows = table, kernel, teacher, rows
        self.power, self.explore, self.skip_zero_weight, self.seed = power, explore, skip_zero_weight, seed
        self.size = len(table) if rows is None else len(rows)
        self._epoch_size = epoch_size or self.size
        self._epoch = self._position = 0  # at power 0: where in which epoch the next prompt is
        self._yielded = 0  # by the pass of iter() that is under way
        self._rng = np.random.default_rng(seed)
        self._order_of = (-1, -1)
        self._order = np.empty(0, np.int64)
        blocks = -(-self.size // _BLOCK)
        self._weights = np.zeros(blocks * _BLOCK, np.float32)  # NaN: unknown; zeros pad the last block
        self._sums = np.zeros((4, blocks))  # of each block, over known weights: Σw, Σm, positive; number unknown
        self.refresh()

    def refresh(self, kernel: Kernel | None = None, table: PassRateTable | None = None) -> None:
        """Recompute every weight, from a new kernel or table if given.

        Raises ValueError if all weights are 0, or the table has another size.
        """
        self.kernel, self.table = kernel or self.kernel, table or self.table
        self._peak = self.kernel.peak
        if self.rows is None and len(self.table) != self.size:
            raise ValueError(f"sampler: the table has {len(self.table)} prompts, the sampler {self.size}")
        for part in self._parts():
            self._weights[part] = self._weigh(part)
            self._sum_blocks(slice(part.start // _BLOCK, -(-part.stop // _BLOCK)))
        self._sum_all()
        self._check_weights()

    def update(self, prompts: npt.ArrayLike) -> None:
        """Recompute the weights of these prompts, after ``table.observe``."""
        prompts = np.unique(np.asarray(prompts, np.int64))
        self._weights[prompts] = self._weigh(prompts)
        self._sum_blocks(np.unique(prompts // _BLOCK))
        self._sum_all()

    def _weigh(self, prompts: IntArray | slice) -> FloatArray:
        """w by the student's counts, and by the teacher's; NaN: not known."""
        rows = prompts if self.rows is None else self.rows[prompts]
        weights = self.kernel(self.table.successes[rows], self.table.samples[rows])
        return weights if self.teacher is None else self.teacher(weights, rows, self._peak)

    def draw(self, n: int) -> IntArray:
        """The next n prompts, int64[n]; the same as n times ``draw(1)``. Raises ValueError if all weights are 0."""
        self._check_weights()
        if self.power == 0 and self.explore == 0:
            return self._walk(n)
        coin, where = self._rng.random((n, 2)).T
        exploring = coin < self.explore
        prompts = np.empty(n, np.int64)
        prompts[exploring] = where[exploring] * self.size
        rest = ~exploring
        prompts[rest] = self._walk(int(rest.sum())) if self.power == 0 else self._invert(where[rest])
        return prompts

    def weights(self, prompts: IntArray | slice = slice(None)) -> FloatArray:
        """Raw weights w of these prompts (all by default), unknown ones filled in; float64 of their shape."""
        return self._fill(self._weights[: self.size][prompts].astype(np.float64))

    def probabilities(self, prompts: IntArray | slice = slice(None)) -> FloatArray:
        """q: the probability of a draw to give each of these prompts; at power 0, its share of an epoch."""
        return self._probability(self.weights(prompts))

    def loss_weights(self, prompts: IntArray) -> npt.NDArray[np.float32]:
        """w̃_i / (N q_i), float32; exactly 0 where w is 0.

        With the weights the prompts were drawn under: call it after ``draw``, before the next ``update``.
        """
        w = self.weights(prompts)
        scale = self._mean * self.size * self._probability(w)
        return np.divide(w, scale, out=np.zeros_like(w), where=w > 0).astype(np.float32)

    @property
    def mean_weight(self) -> float | None:
        """The mean raw weight of all prompts, by which weights are divided; unknown prompts count as known ones do.

        ``None`` as long as no prompt is known to have a positive weight.
        """
        return self._mean if self._sums[0].any() else None

    def __len__(self) -> int:
        return self._epoch_size

    def __iter__(self) -> Iterator[int]:
        """What is left of the current pass, one prompt at a time so that every `update` counts; then a new pass."""
        while self._yielded < len(self):
            self._yielded += 1
            yield int(self.draw(1)[0])
        self._yielded = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything but the table: a few numbers, whatever N."""
        return {
            **self._settings(),
            "epoch": self._epoch,
            "position": self._position,
            "yielded": self._yielded,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the table must hold the counts of that moment, the kernel what was fitted by then.

        Raises ValueError if the state is incomplete, or of a sampler with any other setting.
        """
        check_state(state, self.state_dict().keys(), self._settings())
        self._epoch, self._position, self._yielded = state["epoch"], state["position"], state["yielded"]
        self._rng.bit_generator.state = state["rng"]

    def _settings(self) -> dict[str, Any]:
        """What a restored sampler must share with the saved one, kernel included, as JSON would give it back."""
        return {
            "size": self.size,
            "epoch_size": self._epoch_size,
            "seed": self.seed,
            "power": self.power,
            "explore": self.explore,
            "skip_zero_weight": self.skip_zero_weight,
            "kernel": {**asdict(self.kernel), "prior": list(self.kernel.prior)},
            "teacher": None if self.teacher is None else self.teacher.rule,
        }

    def metrics(self, step: int) -> dict[str, float]:
        """Numbers for the log. Of the prompts whose weight is known: raw mean, largest w̃, share of zero weights,
        effective share (Σw)²/(n Σw²). Of all: entropy of q over log N. Mean steps since a prompt was observed, and how
        the pass rates are spread."""
        return {**self.weight_metrics(), **table_metrics(self.table, step)}

    def weight_metrics(self) -> dict[str, float]:
        """Of `metrics` those of weights and probabilities, which are this sampler's and not the table's."""
        largest = square = entropy = 0.0
        for part in self._parts():
            w = self._weights[: self.size][part].astype(np.float64)
            largest, square = max(largest, float(np.nanmax(w, initial=0.0))), square + float(np.nansum(w * w))
            q = self._probability(self._fill(w))
            entropy -= float(q @ np.log(np.maximum(q, 1e-300)))  # 0 log 0 = 0
        weight, _, positive, unknown = self._sums.sum(axis=1)
        known = self.size - unknown or math.nan
        return {
            "paced/weight/mean": self._mean,
            "paced/weight/max": largest / (self._mean or math.nan),
            "paced/weight/zero_share": 1 - positive / known,
            "paced/weight/ess": weight**2 / (known * square or math.nan),
            "paced/sampler/entropy": entropy / math.log(max(self.size, 2)),
        }

    def _parts(self) -> Iterator[slice]:
        for start in range(0, self.size, _PART):
            yield slice(start, min(start + _PART, self.size))

    def _fill(self, w: FloatArray) -> FloatArray:
        np.copyto(w, self._unknown, where=np.isnan(w))
        return w

    def _mass(self, w: FloatArray) -> FloatArray:
        """m of the class docstring."""
        if self.power > 0:
            return w**self.power
        return (w > 0).astype(np.float64) if self.skip_zero_weight else np.ones_like(w)

    def _probability(self, w: FloatArray) -> FloatArray:
        uniform = self.explore / self.size
        return (1 - self.explore) / self._total * self._mass(w) + uniform if self._total else np.full_like(w, uniform)

    def _sum_blocks(self, blocks: slice | IntArray) -> None:
        w = self._weights.reshape(-1, _BLOCK)[blocks].astype(np.float64)
        unknown = np.isnan(w)
        w[unknown] = 0
        self._sums[:, blocks] = [x.sum(axis=1) for x in (w, w**self.power if self.power else w, w > 0, unknown)]

    def _sum_all(self) -> None:
        weight, _, positive, unknown = self._sums.sum(axis=1)
        known = self.size - unknown
        self._unknown = weight / known if weight > 0 else 1.0
        self._mean = float(weight + unknown * self._unknown) / self.size
        if self.power > 0:
            self._cumulative = np.cumsum(self._sums[1] + self._sums[3] * self._unknown**self.power)
            self._total = float(self._cumulative[-1])
        else:
            self._total = float(positive + unknown) if self.skip_zero_weight else float(self.size)

    def _check_weights(self) -> None:
        if self._mean == 0:
            raise nothing_to_learn("every prompt", self.teacher)

    def _invert(self, u: FloatArray) -> IntArray:
        """Prompts with probability ∝ w^γ from uniform numbers u in [0, 1): the block, then the prompt inside it."""
        prompts = np.empty(len(u), np.int64)
        for start in range(0, len(u), _ROWS):
            x = u[start : start + _ROWS] * self._total
            block = np.searchsorted(self._cumulative, x, side="right")
            below = np.where(block > 0, self._cumulative[block - 1], 0.0)
            w = self._fill(self._weights.reshape(-1, _BLOCK)[block].astype(np.float64))
            inside = np.cumsum(self._mass(w), axis=1)
            # Rescaled, as the sum inside the block is rounded otherwise than its share of the cumulated sums.
            share = np.minimum((x - below) / (self._cumulative[block] - below), 1 - 2**-53)
            chosen = np.sum(inside <= (share * inside[:, -1])[:, None], axis=1)
            prompts[start : start + _ROWS] = block * _BLOCK + chosen
        return prompts

    def _walk(self, n: int) -> IntArray:
        """The next n prompts of the epochs' orders, without those of weight 0."""
        prompts, found = np.empty(n, np.int64), 0
        while found < n:
            ahead = self._look_ahead()
            wanted = self._weights[ahead] != 0 if self.skip_zero_weight else np.ones(len(ahead), bool)
            hits = np.flatnonzero(wanted)[: n - found]
            prompts[found : found + len(hits)] = ahead[hits]
            found += len(hits)
            self._position += int(hits[-1]) + 1 if found == n else len(ahead)
        return prompts

    def _look_ahead(self) -> IntArray:
        """At least the next prompt of the epoch's order, at most _AHEAD of them; starts a new epoch after the last."""
        if self._position == self.size:
            self._epoch, self._position = self._epoch + 1, 0
        start = self._position - self._position % _AHEAD
        if self._order_of != (self._epoch, start):
            index = np.arange(start, min(start + _AHEAD, self.size))
            self._order = shuffled(index, self.size, (self.seed, self._epoch))
            self._order_of = (self._epoch, start)
        return self._order[self._position - start :]


def nothing_to_learn(prompts: str, teacher: Reliability | None) -> ValueError:
    """The error of a sampler whose ``prompts``, in words, all weigh 0."""
    rule = None if teacher is None else teacher.rule
    judged = f", or weight.teacher: {rule} shuts it out" if rule else ""
    return ValueError(
        f"sampler: {prompts} has weight 0, so nothing can be learned: as far as was measured, the student "
        f"solves each of them always or never{judged}. Try estimate: posterior, more samples a prompt, or "
        f"other prompts{', or weight.teacher: null' if rule else ''}"
    )


def check_state(state: Mapping[str, Any], needed: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise ValueError where a saved state lacks something, or is of a sampler with any other setting."""
    if missing := set(needed) - state.keys():
        raise ValueError(f"sampler: the saved state lacks {', '.join(sorted(missing))}; is it of another sampler?")
    different = [f"{name} is {state[name]}, here {value}" for name, value in settings.items() if state[name] != value]
    if different:
        raise ValueError(
            f"sampler: in the saved state {'; '.join(different)}: resume with the settings the run started with, "
            "or start a new run"
        )


def table_metrics(table: PassRateTable, step: int) -> dict[str, float]:
    """Mean steps since a prompt was observed, and how the pass rates are spread, for the log."""
    rates = table.summary()
    return {
        "paced/sampler/staleness": table.staleness(step),
        **{f"paced/pass_rate/{key}": rates[key] for key in ("mean", "low", "frontier", "high", "unseen")},
    }


def shuffled(index: IntArray, size: int, key: tuple[int, int]) -> IntArray:
    """Entries ``index`` of a pseudo-random permutation of 0 … size−1, without writing the permutation down.

    It depends on size and key only. A Feistel network permutes the numbers of 2h bits, 2^2h >= size; walking along its
    cycles until the number is < size restricts it to a permutation of 0 … size−1 (Black & Rogaway 2002). With few bits
    a half some permutations come up more often than others, so a small one is written down after all.
    """
    if size <= _AHEAD:
        return np.random.default_rng(key).permutation(size)[index]
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(key).generate_state(6, np.uint64)
    out = index.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & ((np.uint64(1) << half) - np.uint64(1))
        for round_key in keys:
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ (mixed >> (np.uint64(64) - half))
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)
