"""Prompts of several capabilities in given shares: one pass-rate sampler a capability, and exact quotas."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import IntArray, RowArray
from paced_verl.pacing.quotas import Quotas
from paced_verl.pacing.sampler import FloatArray, PassRateSampler, check_state, nothing_to_learn, table_metrics


class MixSampler:
    """Draws each capability's share of the prompts, and by pass rates within a capability.

    The expected gradient is Σ_c mix_c (1/N_c) Σ_{i in c} w̃_i g_i, with w̃ = w / mean(w) over the N_c prompts of a
    capability: the mix is what is wanted, so nothing makes up for it. Loss weights are those of
    :class:`~paced_verl.pacing.sampler.PassRateSampler` over the capability alone, and so are draws: they depend on its
    own prompts and on how many were drawn, not on the mix. With one capability all is as without.

    Shares are exact at every moment, as :class:`~paced_verl.pacing.quotas.Quotas` says. A capability whose prompts all
    weigh 0 gives its share away in proportion to the others' mix, until one of its prompts weighs again; it gets
    nothing in return then.

    Memory is 10 bytes a prompt on top of the table's 12: row 4, weight 4, capability 2.

    Args:
        table, kernel: As of PassRateSampler, over the prompts of all capabilities.
        groups: Capability of each prompt, int16 (N,), as the place of its name; −1: set apart, never drawn.
        names: Of the capabilities, C.
        mix: Share of the draws of each, (C,), on the simplex.
        seed: Each capability draws from a stream of its own; the first has that of a PassRateSampler of this seed.
        epoch_size: Number of prompts in one pass of ``iter()``, by default all that are drawn.
        settings: ``power``, ``explore``, ``skip_zero_weight``, ``teacher`` of PassRateSampler.

    Raises:
        ValueError: A capability without prompts, a mix that is none, or settings that PassRateSampler refuses.
    """

    def __init__(
        self,
        table: PassRateTable,
        kernel: Kernel,
        *,
        groups: npt.NDArray[np.int16],
        names: Sequence[str],
        mix: npt.ArrayLike,
        seed: int = 0,
        epoch_size: int | None = None,
        **settings: Any,
    ) -> None:
        if epoch_size is not None and epoch_size < 1:
            raise ValueError(f"sampler: epoch_size must be >= 1, got {epoch_size}")
        if groups.shape != (len(table),) or groups.min() < -1 or groups.max() >= len(names):
            raise ValueError(f"sampler: expected one of {len(names)} capabilities for each of {len(table)} prompts")
        self.table, self.groups, self.names, self.seed = table, groups, tuple(names), seed
        self._epoch_size = epoch_size or int(np.count_nonzero(groups >= 0))
        self._yielded = 0  # by the pass of iter() that is under way
        self._parts = []
        for group, name in enumerate(names):
            rows: RowArray = np.flatnonzero(groups == group).astype(np.int32)
            if not rows.size:
                raise ValueError(f"sampler: capability {name!r} has no prompts")
            self._parts.append(_Part(table, kernel, rows=rows, seed=stream_seed(seed, group), **settings))
        self._quotas = Quotas(len(names))
        self.mix = np.zeros(len(names))
        self._drawn = np.zeros(len(names), np.int64)  # since the mix was set
        self.set_mix(mix)
        self._newest: FloatArray | None = None  # a mix that was set since the run started
        self._check_weights()

    # ------------------------------------------------------------------ the mix

    def set_mix(self, mix: npt.ArrayLike) -> None:
        """Draw in these shares from here on, (C,); what the last mix still owes a capability stays owed.

        A data loader hands a saved state to its sampler at the first draw only: what was set before that holds after.

        Raises:
            ValueError: It is not on the simplex.
        """
        shares = np.asarray(mix, np.float64)
        if shares.shape != (len(self.names),) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
            raise ValueError(
                f"sampler: the mix must be a share >= 0 for each of {', '.join(self.names)}, and they must sum to 1, "
                f"got {shares.tolist()}"
            )
        self._newest, shares = shares, shares / shares.sum()
        if not np.array_equal(shares, self.mix):
            self.mix, self._drawn = shares, np.zeros(len(shares), np.int64)
        self._share_out()

    @property
    def without_weight(self) -> tuple[str, ...]:
        """Names of the capabilities whose prompts all weigh 0."""
        return tuple(name for name, part in zip(self.names, self._parts, strict=True) if not part.weighs)

    @property
    def owed(self) -> FloatArray:
        """Prompts that each capability is behind its share, (C,); ahead where negative. They sum to 0."""
        return self._quotas.owed

    def _share_out(self) -> None:
        """Hand the shares of capabilities without weight to the others."""
        weighs = np.array([part.weighs for part in self._parts])
        shares = np.where(weighs, self.mix, 0.0)
        self.given_away = float(1 - shares.sum()) if not weighs.all() else 0.0
        if shares.any():
            self._quotas.set(shares / shares.sum() if self.given_away else shares, open_to=weighs)

    def _check_weights(self) -> None:
        shut = [name for name, share in zip(self.names, self.mix, strict=True) if share > 0]
        if set(shut) <= set(self.without_weight):
            every = "every prompt" if len(shut) == len(self.names) else f"every prompt of {', '.join(shut)} (the mix)"
            raise nothing_to_learn(every, self._parts[0].teacher)

    # ------------------------------------------------------------------ what a run asks of a sampler

    @property
    def mean_weight(self) -> float | None:
        """The mean of the capabilities' mean weights under the mix; ``None``: no weight is known to be positive.

        A capability's weights are divided by its own mean, not by this.
        """
        known = [(share, mean) for share, part in self._shared() if (mean := part.mean_weight) is not None]
        total = sum(share for share, _ in known)
        return sum(share * mean for share, mean in known) / total if total else None

    def draw(self, n: int) -> IntArray:
        """The next n prompts, int64 (n,); the same as n times ``draw(1)``. Raises ValueError if all weights are 0."""
        self._check_weights()
        groups = self._quotas.draw(n)
        self._drawn += np.bincount(groups, minlength=len(self.names))
        prompts = np.empty(n, np.int64)
        for part, here in self._split(groups):
            prompts[here] = part.rows[part.draw(int(here.sum()))]
        return prompts

    def loss_weights(self, prompts: IntArray) -> npt.NDArray[np.float32]:
        """w̃_i / (N_c q_i) with q within the capability, float32 (n,); exactly 0 where w is 0.

        With the weights the prompts were drawn under: call it after ``draw``, before the next ``update``.
        """
        weights = np.zeros(len(prompts), np.float32)
        for part, here in self._split(self.groups[prompts]):
            weights[here] = part.loss_weights(part.places(prompts[here]))
        return weights

    def update(self, prompts: npt.ArrayLike) -> None:
        """Recompute the weights of these prompts, after ``table.observe``."""
        observed = np.asarray(prompts, np.int64)
        for part, here in self._split(self.groups[observed]):
            part.update(part.places(observed[here]))
        self._share_out()

    def refresh(self, kernel: Kernel | None = None, table: PassRateTable | None = None) -> None:
        """Recompute every weight, from a new kernel or table if given.

        Raises ValueError if all weights are 0, or the table has another size.
        """
        self.table = table or self.table
        if len(self.table) != len(self.groups):
            raise ValueError(f"sampler: the table has {len(self.table)} prompts, the sampler {len(self.groups)}")
        for part in self._parts:
            part.refresh(kernel, table)
        self._share_out()
        self._check_weights()

    def __len__(self) -> int:
        return self._epoch_size

    def __iter__(self) -> Iterator[int]:
        """What is left of the current pass, one prompt at a time so that every `update` counts; then a new pass."""
        while self._yielded < len(self):
            self._yielded += 1
            yield int(self.draw(1)[0])
        self._yielded = 0

    def _split(self, groups: npt.NDArray[np.integer]) -> Iterator[tuple[_Part, npt.NDArray[np.bool_]]]:
        """The samplers of these capabilities, and where theirs are."""
        for group in np.unique(groups[groups >= 0]).tolist():
            yield self._parts[group], groups == group

    def _shared(self) -> Iterator[tuple[float, _Part]]:
        """The share that each capability is drawn in, and its sampler."""
        return zip(self._quotas.shares.tolist(), self._parts, strict=True)

    # ------------------------------------------------------------------ state and log

    def state_dict(self) -> dict[str, Any]:
        """Everything but the table: a few numbers a capability, whatever N."""
        return {
            **self._settings(),
            "mix": self.mix.tolist(),
            "drawn": self._drawn.tolist(),
            "quotas": self._quotas.state_dict(),
            "yielded": self._yielded,
            "parts": [part.state_dict() for part in self._parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the table must hold the counts of that moment, the kernel what was fitted by then.

        Raises ValueError if the state is incomplete, or of a sampler with any other setting or other capabilities.
        """
        check_state(state, self.state_dict().keys(), self._settings())
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.mix, self._drawn = np.array(state["mix"]), np.array(state["drawn"], np.int64)
        self._yielded = state["yielded"]
        self._quotas.load_state_dict(state["quotas"])
        self._share_out()
        if self._newest is not None:
            self.set_mix(self._newest)

    def _settings(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "groups": zlib.crc32(np.ascontiguousarray(self.groups).data),
            "epoch_size": self._epoch_size,
            "seed": self.seed,
        }

    def metrics(self, step: int) -> dict[str, float]:
        """Numbers for the log: of all prompts, those that PassRateSampler has; and of each capability.

        Over all: raw mean weight; largest w̃; share of zero weights; effective share 1 / (n Σ s²) of the n prompts whose
        weight is known, s being a prompt's part of the objective; entropy of the draws over log N. Of a capability its
        share of the draws as set and since it was set, and its mean pass rate; and the share that is given away.
        """
        metrics = self._weight_metrics() | table_metrics(self.table, step)
        metrics["paced/capability/given_away"] = self.given_away
        drawn = self._drawn / (self._drawn.sum() or math.nan)
        for name, part, planned, realised in zip(self.names, self._parts, self.mix, drawn, strict=True):
            rates = self.table.rates(part.rows)
            of_name = {"planned": planned, "realised": realised, "pass_rate": _mean(rates[~np.isnan(rates)])}
            metrics |= {f"paced/capability/{name}/{key}": float(value) for key, value in of_name.items()}
        return metrics

    def _weight_metrics(self) -> dict[str, float]:
        found = [part.weight_metrics() for part in self._parts]
        mean, largest, zero, ess, entropy = (
            np.array([metrics[key] for metrics in found])
            for key in (
                *(f"paced/weight/{name}" for name in ("mean", "max", "zero_share", "ess")),
                "paced/sampler/entropy",
            )
        )
        size, known = (np.array([getattr(part, key) for part in self._parts]) for key in ("size", "known"))
        shares, total = self._quotas.shares, known.sum() or math.nan
        square = np.sum(shares**2 / (known * ess), where=shares > 0)
        own = entropy * np.log(np.maximum(size, 2))
        surprise = -np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return {
            "paced/weight/mean": float(mean @ size / size.sum()),
            "paced/weight/max": float(np.fmax.reduce(largest)),
            "paced/weight/zero_share": float(np.nansum(zero * known) / total),
            "paced/weight/ess": float(1 / (total * square)),
            "paced/sampler/entropy": float(shares @ (own + surprise) / math.log(max(size.sum(), 2))),
        }


class _Part(PassRateSampler):
    """The prompts of a capability, counted from 0; all of them may weigh 0."""

    rows: RowArray

    @property
    def weighs(self) -> bool:
        """Whether a prompt has a weight above 0."""
        return self._mean > 0

    @property
    def known(self) -> float:
        """Number of prompts whose weight is known."""
        return self.size - float(self._sums[3].sum())

    def places(self, prompts: IntArray) -> IntArray:
        """Where these rows of the table are among its own, which ascend: no inverse of them is kept."""
        return np.searchsorted(self.rows, prompts.astype(np.int32))  # of another type it would copy all rows

    def _check_weights(self) -> None:
        """Nothing: the mix gives the share of a capability without weight to the others."""


def stream_seed(seed: int, group: int) -> int:
    """The seed of a capability's draws: that of the run for the first, and 64 bits of both numbers for others."""
    return seed if group == 0 else int(np.random.SeedSequence((seed, group)).generate_state(1, np.uint64)[0])


def _mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
