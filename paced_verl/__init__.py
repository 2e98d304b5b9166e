"""PACED distillation for verl, as a plugin.

verl imports this module in every one of its processes (entry-point group ``verl.plugins``), so it stays light: it
only leaves notes saying what to register once verl's trainer or its losses are imported. A process that imports neither
pays a few milliseconds; the driver of a run that is not ours imports our modules beside verl's own, which takes a
quarter of a second, and behaves as before. Whatever goes wrong here is said and ends no such run; a ``paced``
configuration is refused where it is composed (``checks/environment.py``).
"""

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType

import wrapt

__version__ = "0.1.0"

Hook = Callable[[ModuleType], None]


@functools.cache
def _say(line: str) -> None:
    """Once: one broken module is behind several others."""
    print(line, file=sys.stderr, flush=True)


def _when_imported(name: str) -> Callable[[Hook], Hook]:
    """Run the decorated function once verl has imported a module, and say what it raises: no import may end by it."""

    def decorate(register: Hook) -> Hook:
        @functools.wraps(register)
        def careful(module: ModuleType) -> None:
            try:
                register(module)
            except Exception as error:
                _say(f"paced-verl is installed but does not load: {type(error).__name__}: {error}")

        wrapt.register_post_import_hook(careful, name)
        return careful

    return decorate


@_when_imported("verl.trainer.distillation.losses")
def _register_loss(_module: ModuleType) -> None:
    """Make ``distillation.distillation_loss.loss_mode=paced`` known wherever verl builds its distillation config."""
    import paced_verl.training.loss  # noqa: F401


@_when_imported("verl.trainer.ppo.v1")
def _register_trainers(_module: ModuleType) -> None:
    """Make ``trainer.v1.trainer_mode=paced_sync`` known in the process that builds the trainer."""
    import paced_verl.training.trainer  # noqa: F401


@_when_imported("verl.trainer.ppo.ray_trainer")
def _register_advantage(module: ModuleType) -> None:
    """Make ``algorithm.adv_estimator=paced`` known in the process that computes advantages."""
    from paced_verl.advantage.install import install_estimator

    install_estimator(module)


@_when_imported("verl.workers.engine_workers")
def _read_teacher_path(module: ModuleType) -> None:
    """Make ``actor_rollout_ref.ref.teacher_path`` known in the process that builds a reference worker."""
    from paced_verl.advantage.install import install_teacher_path

    install_teacher_path(module)


@_when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout")
def _sender_apart(module: ModuleType) -> None:
    """Keep the sockets of runs that share a machine apart, the trainer's end."""
    from paced_verl.training.sockets import sender_apart

    sender_apart(module)


@_when_imported("verl.workers.rollout.vllm_rollout.utils")
def _receiver_apart(module: ModuleType) -> None:
    """The server's end."""
    from paced_verl.training.sockets import receiver_apart

    receiver_apart(module)


if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":

    @_when_imported("verl.plugin.platform")
    def _register_platform(_module: ModuleType) -> None:
        """Make ``VERL_PLATFORM=cpu`` known before verl asks which platform it is."""
        import paced_verl.cpu.platform  # noqa: F401
