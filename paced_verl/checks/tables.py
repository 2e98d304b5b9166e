"""The table of pass rates that a run begins with: of these data, and with something to learn in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from paced_verl.alignment.predict import Predictor
from paced_verl.checks.data import number_of_prompts
from paced_verl.checks.scan import Rows
from paced_verl.config import PacedConfig
from paced_verl.errors import PacedError
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler

KEY = "paced.pass_rate.file"
AGAIN = "Take the table of this data set, or leave the key unset: pass rates are then estimated."


def pass_rates(config: DictConfig, paced: PacedConfig, rows: Rows) -> Iterator[str]:
    """Problems of ``paced.pass_rate.file``.

    Args:
        config: verl's whole configuration.
        paced: Its ``paced`` block, parsed.
        rows: What a pass over the data found.
    """
    path = paced.pass_rate.file
    if path is None:
        return
    if not Path(path).is_file():
        yield f"{KEY}={path}: there is no such file."
        return
    prompts, filtered = number_of_prompts(config), config.data.get("filter_overlong_prompts", True)
    try:
        # Which rows verl keeps is only known once it has tokenized them all; the trainer looks again.
        table = PassRateTable.load(path, expected_size=None if filtered else prompts)
    except ValueError as error:
        yield f"{KEY}: {error}"
        return
    if prompts is not None and len(table) > prompts:
        yield f"{KEY}={path}: it has {len(table):,} prompts, the training data {prompts:,}. {AGAIN}"
    elif len(table) == prompts and rows.fingerprint and table.fingerprint not in ("", rows.fingerprint):
        yield f"{KEY}={path}: it belongs to other prompts than the training data's, or to another order. {AGAIN}"
    elif not np.any(table.samples > 0):
        yield f"{KEY}={path}: no prompt in it has a sample, so nothing is known. {AGAIN}"
    else:
        yield from _weights(paced, table)


def predictor(paced: PacedConfig) -> Iterator[str]:
    """Problems of ``paced.tokens.file``."""
    if paced.tokens.file is not None:
        try:
            Predictor.load(Path(paced.tokens.file))
        except PacedError as error:
            yield str(error)


def _weights(paced: PacedConfig, table: PassRateTable) -> Iterator[str]:
    """What the run would do with it at its start."""
    weight = paced.weight
    try:
        kernel = weight.with_prior(weight.with_exponents(weight.to_kernel(), table), table)
        if paced.capability is None:  # else some of them may weigh nothing at all
            PassRateSampler(table, kernel, power=paced.sampler.power, explore=paced.sampler.explore)
    except ValueError as error:
        yield f"{KEY}={paced.pass_rate.file}: {error}."
