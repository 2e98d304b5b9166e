"""Read a run's files: verl's metrics (``trainer.logger: [file]``) and the pass-rate tables beside its checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paced_verl.pacing.pass_rates import PassRateTable


@dataclass(frozen=True)
class Run:
    """A run's numbers.

    Attributes:
        metrics: By step, verl's and this plugin's scalars; the last attempt's where a resumed run trained a step again.
        pass_rates: By number of training steps done, the tables estimated on the whole training set.
    """

    metrics: dict[int, dict[str, float]]
    pass_rates: dict[int, PassRateTable]

    @classmethod
    def load(cls, metrics: Iterable[Path], checkpoints: Path) -> Run:
        """Read ``metrics`` (JSON lines, in order) and the tables in ``checkpoints``, verl's ``default_local_dir``.

        A last line without its end is what a kill has left of it: the step is not counted.
        """
        steps: dict[int, dict[str, float]] = {}
        for file in metrics:
            *lines, _ = file.read_text().split("\n")
            for line in lines:
                entry = json.loads(line)
                steps.setdefault(entry["step"], {}).update(entry["data"])
        tables = {}
        for file in (checkpoints / "paced" / "pass_rates").glob("after_step_*.parquet"):
            match = re.fullmatch(r"after_step_(\d+)", file.stem)
            if match:
                tables[int(match[1])] = PassRateTable.load(file)
        return cls(dict(sorted(steps.items())), dict(sorted(tables.items())))

    def series(self, name: str) -> dict[int, float]:
        """A metric by step, where it was logged."""
        return {step: values[name] for step, values in self.metrics.items() if name in values}

    def accuracy(self) -> dict[int, float]:
        """Held-out accuracy by step: the mean of verl's ``val-core/…/mean@n`` over data sources."""
        by_step = {}
        for step, values in self.metrics.items():
            scores = [v for name, v in values.items() if name.startswith("val-core/") and "/mean@" in name]
            if scores:
                by_step[step] = sum(scores) / len(scores)
        return by_step
