"""The block ``algorithm.paced``."""

from __future__ import annotations

from omegaconf import DictConfig
from pydantic import StrictBool

from paced_verl.config import KernelConfig
from paced_verl.config.base import Factor, Number, PositiveFactor


class AdvantageConfig(KernelConfig):
    """The block ``algorithm.paced``. No table of pass rates is there to fit to: ``prior: null`` is Beta(1, 1)."""

    threshold: Number = 0.5
    """A response is correct from this score on: the sum of its token rewards (verl hands an estimator no ``acc``)."""
    mean_weight: PositiveFactor | None = None
    """What w is divided by; null: see :func:`paced_verl.pacing.kernel.weights_by_successes`."""
    task_coef: Factor = 0.0
    """Factor of GRPO's advantage (verl's, under ``algorithm.norm_adv_by_std_in_grpo``). Not multiplied by w̃."""
    strict: StrictBool = False
    """Whether a setting of verl's that would be replaced or ignored is an error."""

    @classmethod
    def of(cls, algorithm: DictConfig) -> AdvantageConfig:
        """Read ``paced`` in verl's ``algorithm`` configuration; defaults where it is missing.

        Raises:
            ConfigError: With one line a problem.
        """
        return cls.read(algorithm.get("paced") if "paced" in algorithm else {}, "algorithm.paced")
