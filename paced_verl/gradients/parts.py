"""Gradients on disk, a file a problem: a command that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paced_verl.atomic import replacing
from paced_verl.errors import PacedError
from paced_verl.gradients.worker import Gradient

SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("squared_norm", pa.float64()),
        ("sketch", pa.list_(pa.float32())),
        ("divergence", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


class Parts:
    """The gradients that a folder has of a measurement.

    Args:
        folder: It may hold those of other measurements, too.
        keys: By prompt, :meth:`paced_verl.gradients.worker.Recipe.key`.
    """

    def __init__(self, folder: Path, keys: Mapping[int, str]):
        self.folder, self.keys = folder, keys

    def file(self, prompt: int) -> Path:
        """Where a problem's gradient is, once it is."""
        return self.folder / f"{prompt}-{self.keys[prompt]}.parquet"

    def missing(self) -> list[int]:
        """The prompts whose gradients are not there."""
        return [prompt for prompt in self.keys if not self.file(prompt).exists()]

    def write(self, gradient: Gradient) -> None:
        """Write a gradient, all of it or nothing.

        Raises:
            PacedError: It is infinite, or no number: its bin would have no SNR.
        """
        if not np.isfinite(gradient.squared_norm):
            raise PacedError(
                f"The gradient of prompt {gradient.prompt} is not finite (its squared length is "
                f"{gradient.squared_norm}). Compute with --dtype float32; if that is how it was, the model's weights "
                "or the divergence are at fault."
            )
        row = {name: [getattr(gradient, name)] for name in SCHEMA.names}
        with replacing(self.file(gradient.prompt)) as unfinished:
            pq.write_table(pa.table(row, schema=SCHEMA), unfinished, compression="zstd", use_dictionary=False)

    def read(self, prompt: int) -> Gradient:
        """A gradient that is there.

        Raises:
            PacedError: The file is damaged.
        """
        file = self.file(prompt)
        try:
            (row,) = pq.read_table(file, schema=SCHEMA).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PacedError(f"{file} is not a gradient ({error}). Delete it: it is then computed again.") from None
        return Gradient(**row | {"sketch": np.array(row["sketch"], np.float32)})
