"""What a run knows and a checkpoint keeps: pass rates, the sampler over them, stored teacher responses. No verl."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from paced_verl.config import PacedConfig
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler
from paced_verl.targets.files import Origin
from paced_verl.targets.store import TargetStore


class PacedState:
    """The state of a run on the driver, at first what the files that its configuration names say.

    Args:
        paced: The parsed ``paced`` block.
        prompts: Number of training prompts.
        epoch_size: Draws of one pass over them (whole batches).
        task_rewards: Whether prompts also get a task reward: then none may be left out for its weight.
        fingerprint: Names the data set: a table or targets of another one are refused.
        tokenizer: Names the student's tokens: targets in others are refused.
    """

    def __init__(
        self,
        paced: PacedConfig,
        prompts: int,
        epoch_size: int,
        task_rewards: bool = False,
        fingerprint: str = "",
        tokenizer: str = "",
    ):
        self.paced = paced
        self.table = PassRateTable(prompts, paced.pass_rate.decay, fingerprint)
        self.targets = TargetStore(Origin(fingerprint, tokenizer))
        self.last_refresh: int | None = None
        every_prompt = task_rewards or paced.weight.source == "group"
        self.sampler = PassRateSampler(
            self.table,
            paced.weight.to_kernel(),
            power=paced.sampler.power,
            explore=paced.sampler.explore,
            skip_zero_weight=paced.sampler.skip_zero_weight and not every_prompt,
            seed=paced.sampler.seed,
            epoch_size=epoch_size,
        )
        if paced.pass_rate.file is not None:
            self.use_table(self._load_table(paced.pass_rate.file), step=1)
        if paced.targets.file is not None and Path(paced.targets.file).exists():
            self.targets.load(paced.targets.file)

    def new_table(self) -> PassRateTable:
        """An empty table."""
        return PassRateTable(len(self.table), self.paced.pass_rate.decay, self.table.fingerprint)

    def _load_table(self, path: str | Path) -> PassRateTable:
        return PassRateTable.load(path, len(self.table), self.table.fingerprint, self.paced.pass_rate.decay)

    def use_table(self, table: PassRateTable, step: int) -> None:
        """Weigh by this table from ``step`` on, with what the configuration leaves to the data fitted to it."""
        weight, kernel = self.paced.weight, self.sampler.kernel
        try:
            kernel = weight.with_exponents(kernel, table)
        except ValueError as error:
            if self.last_refresh is None:
                raise
            print(f"[paced] keeping α={kernel.alpha:.3g}, β={kernel.beta:.3g}: {error}", flush=True)
        kernel = weight.with_prior(kernel, table)
        self.table, self.last_refresh = table, step
        self.sampler.refresh(kernel, table)

    @property
    def fitted(self) -> dict[str, Any]:
        """The kernel's numbers that were taken from the data, not from the configuration."""
        weight, kernel = self.paced.weight, self.sampler.kernel
        fitted: dict[str, Any] = {"alpha": kernel.alpha, "beta": kernel.beta} if weight.fit is not None else {}
        if weight.estimate == "posterior" and weight.prior is None:
            fitted["prior"] = kernel.prior
        return fitted

    def save(self, folder: Path) -> None:
        """Write all but the sampler's position, which is its dataloader's state in verl's files."""
        folder.mkdir(parents=True, exist_ok=True)
        self.table.save(folder / "pass_rates.parquet")
        self.targets.save_parts(folder / "targets")
        (folder / "state.json").write_text(json.dumps({"last_refresh": self.last_refresh, "fitted": self.fitted}))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: It belongs to another data set.
        """
        state = json.loads((folder / "state.json").read_text())
        self.last_refresh, fitted = state["last_refresh"], state["fitted"]
        if "prior" in fitted:
            fitted["prior"] = tuple(fitted["prior"])
        self.table = self._load_table(folder / "pass_rates.parquet")
        self.targets.load(folder / "targets")
        self.sampler.refresh(dataclasses.replace(self.sampler.kernel, **fitted), self.table)
