"""How often the student solves each prompt: k successes of n samples, 12 bytes a prompt."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.atomic import replacing
from paced_verl.errors import PacedError

_FORMAT = b"1"
LOW, HIGH = 0.2, 0.8
"""The frontier of competence is LOW <= p <= HIGH, as in the paper's figures and its hard-filter baseline."""


def is_correct(score: float, extra: Mapping[str, Any], threshold: float) -> bool:
    """Whether a response passes: verl's ``acc`` if the reward gives it, else the reward, from ``threshold`` on."""
    return float(extra.get("acc", score)) >= threshold


class PassRateTable:
    """Counts for prompts 0 … size−1.

    successes, samples: float32[size]; fractions once counts have decayed.
    last_seen: int32[size], the training step of the last observation, or of a measurement that no response came of;
        −1 for never.
    decay: what an old count is multiplied by when its prompt is observed again; 1 keeps everything.
    fingerprint: names the data set the counts belong to; empty where that is not known.
    """

    def __init__(self, size: int, decay: float = 1.0, fingerprint: str = "") -> None:
        if size < 1:
            raise ValueError(f"pass rates: a table needs at least one prompt, got size={size}")
        if not 0 <= decay <= 1:
            raise ValueError(f"pass rates: decay must lie in [0, 1], got {decay}")
        self.decay, self.fingerprint = decay, fingerprint
        self.successes = np.zeros(size, np.float32)
        self.samples = np.zeros(size, np.float32)
        self.last_seen = np.full(size, -1, np.int32)

    def __len__(self) -> int:
        return len(self.samples)

    def observe(self, prompts: npt.ArrayLike, successes: npt.ArrayLike, samples: npt.ArrayLike, step: int) -> None:
        """Add counts at a training step; three arrays of one shape.

        A prompt may occur several times: its counts add up, and its old counts decay once. An entry with 0 samples is
        no observation. Raises ValueError, and changes nothing, for shapes that differ, prompts out of range, or counts
        that break 0 <= successes <= samples.
        """
        prompts, k, n = self._check(prompts, successes, samples)
        tried = n > 0
        rows, where = np.unique(prompts[tried], return_inverse=True)
        self.successes[rows] = self.successes[rows] * self.decay + np.bincount(where, k[tried], len(rows))
        self.samples[rows] = self.samples[rows] * self.decay + np.bincount(where, n[tried], len(rows))
        self.last_seen[rows] = step

    def _check(
        self, prompts: npt.ArrayLike, successes: npt.ArrayLike, samples: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The three arrays, or a ValueError that says what is wrong with them."""
        prompts = np.asarray(prompts)
        k, n = np.asarray(successes, np.float64), np.asarray(samples, np.float64)
        if not prompts.shape == k.shape == n.shape:
            raise ValueError(
                f"pass rates: shapes differ: prompts {prompts.shape}, successes {k.shape}, samples {n.shape}"
            )
        if not prompts.size:
            return prompts.astype(np.int64), k, n
        if not np.issubdtype(prompts.dtype, np.integer):
            raise ValueError(f"pass rates: prompts must be integers, got {prompts.dtype}")
        if prompts.min() < 0 or prompts.max() >= len(self):
            raise ValueError(
                f"pass rates: prompts must lie in 0..{len(self) - 1}, got {prompts.min()}..{prompts.max()}; "
                "does the table belong to this data set?"
            )
        wrong = ~((k >= 0) & (k <= n) & (n < np.inf))
        if wrong.any():
            i = np.flatnonzero(wrong.ravel())[0]
            raise ValueError(
                "pass rates: need 0 <= successes <= samples, got "
                f"{k.ravel()[i]} of {n.ravel()[i]} for prompt {prompts.ravel()[i]}"
            )
        return prompts.astype(np.int64, copy=False), k, n

    def take_over(self, other: "PassRateTable") -> None:
        """Hold another's counts, of the same prompts, from here on."""
        for mine, theirs in zip(self._columns(), other._columns(), strict=True):
            mine[:] = theirs

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return self.successes, self.samples, self.last_seen

    def rates(self, prompts: npt.NDArray[np.integer] | slice = slice(None)) -> npt.NDArray[np.float32]:
        """Pass rates float32 of these prompts, all by default; NaN for one without samples."""
        successes, samples = self.successes[prompts], self.samples[prompts]
        return np.divide(successes, samples, out=np.full(samples.shape, np.nan, np.float32), where=samples > 0)

    def staleness(self, step: int) -> float:
        """Mean number of steps since a prompt was last observed, over the observed ones; NaN if there are none."""
        seen = self.samples > 0
        return step - float(self.last_seen.mean(where=seen)) if seen.any() else float("nan")

    def summary(self) -> dict[str, Any]:
        """``mean``, ``low`` (p < .2), ``frontier``, ``high`` (p > .8): shares of the observed prompts, NaN without any;
        ``unseen``: share of all prompts; ``histogram``: number of prompts in 10 equal bins of p (1 is in the last)."""
        rates = self.rates()  # NaN is neither >= nor > anything
        at_least = [int(np.count_nonzero(rates >= edge / 10)) for edge in range(10)]
        seen = at_least[0] or np.nan
        low, high = np.count_nonzero(rates < LOW), np.count_nonzero(rates > HIGH)
        return {
            "mean": float(np.nansum(rates, dtype=np.float64)) / seen,
            "low": low / seen,
            "frontier": (at_least[0] - low - high) / seen,
            "high": high / seen,
            "unseen": 1 - at_least[0] / len(self),
            "histogram": [count - above for count, above in zip(at_least, [*at_least[1:], 0], strict=True)],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a parquet file, all of it or nothing."""
        metadata = {
            b"paced_verl.format": _FORMAT,
            b"paced_verl.fingerprint": self.fingerprint.encode(),
        }
        table = pa.table(
            {
                "prompt": np.arange(len(self), dtype=np.int32),
                "successes": self.successes,
                "samples": self.samples,
                "last_seen": self.last_seen,
            }
        ).replace_schema_metadata(metadata)
        with replacing(Path(path)) as unfinished:
            pq.write_table(
                table,
                unfinished,
                compression="zstd",
                use_dictionary=["successes", "samples", "last_seen"],
                column_encoding={"prompt": "DELTA_BINARY_PACKED"},
                write_page_checksum=True,
            )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], expected_size: int | None = None, fingerprint: str = "", decay: float = 1.0
    ) -> "PassRateTable":
        """Read what `save` wrote, or a parquet file made by hand with columns prompt, successes, samples.

        A file holds counts; how the table forgets them from here on is its reader's ``decay``.

        A file made by hand may hold its rows in any order and, if ``expected_size`` says how many prompts there are,
        some of the prompts only; the others are unseen. Raises FileNotFoundError, or PacedError if the file is damaged,
        is not such a table, or belongs to a data set of another size or fingerprint.
        """
        path = Path(path)
        try:
            columns = pq.read_table(path, page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise PacedError(
                f"{path}: expected a parquet table of pass rates, but it cannot be read ({error}); "
                "the file is damaged or of another kind: restore it, or estimate the pass rates again"
            ) from error
        missing = {"prompt", "successes", "samples"} - set(columns.column_names)
        if missing:
            raise PacedError(
                f"{path}: expected columns prompt, successes, samples, but {', '.join(sorted(missing))} is missing "
                f"(found {', '.join(columns.column_names)}); rename the columns or estimate the pass rates again"
            )
        metadata = columns.schema.metadata or {}
        complete = b"paced_verl.format" in metadata
        if complete and metadata[b"paced_verl.format"] != _FORMAT:
            raise PacedError(
                f"{path}: expected format {_FORMAT.decode()}, found {metadata[b'paced_verl.format'].decode()}; "
                "it was written by another version of paced-verl: use that version or estimate the pass rates again"
            )
        stored = metadata.get(b"paced_verl.fingerprint", b"").decode()
        if fingerprint and stored and stored != fingerprint:
            raise PacedError(
                f"{path}: expected pass rates of data set {fingerprint}, found those of {stored}: the prompts are "
                "others, or in another order; point to the table of this data set or estimate the pass rates again"
            )
        size = columns.num_rows if expected_size is None else expected_size
        if complete and size != columns.num_rows:
            raise PacedError(
                f"{path}: expected {size} prompts, found {columns.num_rows}; "
                "point to the table of this data set or estimate the pass rates again"
            )
        table = cls(size, decay, stored or fingerprint)
        try:
            prompts, k, n = table._check(*(columns[name].to_numpy() for name in ("prompt", "successes", "samples")))
            if len(prompts) and np.bincount(prompts).max() > 1:
                raise ValueError("a prompt occurs in more than one row")
        except (ValueError, TypeError) as error:
            raise PacedError(
                f"{path}: expected each prompt once, within 0..{size - 1}, and 0 <= successes <= samples, but {error}; "
                "correct the file or estimate the pass rates again"
            ) from error
        table.successes[prompts], table.samples[prompts] = k, n
        if "last_seen" in columns.column_names:
            table.last_seen[prompts] = columns["last_seen"].to_numpy()
        else:
            table.last_seen[prompts[n > 0]] = 0
        return table
