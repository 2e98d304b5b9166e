"""PACED distillation for verl, as a plugin.

verl imports this module in every one of its processes (entry-point group ``verl.plugins``), so it stays light: it
only leaves notes saying what to register once verl's trainer or its losses are imported. A process that never
runs a ``paced`` configuration pays a few milliseconds and behaves as before.
"""

import os
from types import ModuleType

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("verl.trainer.distillation.losses")
def _register_loss(_module: object) -> None:
    """Make ``distillation.distillation_loss.loss_mode=paced`` known wherever verl builds its distillation config."""
    import paced_verl.loss  # noqa: F401


@wrapt.when_imported("verl.trainer.ppo.v1")
def _register_trainers(_module: object) -> None:
    """Make ``trainer.v1.trainer_mode=paced_sync`` known in the process that builds the trainer."""
    import paced_verl.trainer  # noqa: F401


@wrapt.when_imported("verl.trainer.ppo.ray_trainer")
def _register_advantage(module: ModuleType) -> None:
    """Make ``algorithm.adv_estimator=paced`` known in the process that computes advantages."""
    from paced_verl.advantage import install

    install(module)


@wrapt.when_imported("verl.workers.engine_workers")
def _read_teacher_path(module: ModuleType) -> None:
    """Make ``actor_rollout_ref.ref.teacher_path`` known in the process that builds a reference worker."""
    from paced_verl.reference_path import install

    install(module)


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":

    @wrapt.when_imported("verl.plugin.platform")
    def _register_platform(_module: object) -> None:
        """Make ``VERL_PLATFORM=cpu`` known before verl asks which platform it is."""
        import paced_verl.platform_cpu  # noqa: F401
