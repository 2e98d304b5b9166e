"""verl's trainer workers with what PACED asks of them: a learning rate to scale, and a teacher beside the actor.

Whatever the teacher or the learning rate needs is asked by the trainer on the driver; a worker decides nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker

from paced_verl.teacher.engine import ReferenceTeacher

if TYPE_CHECKING:
    _Base = ActorRolloutRefWorker
else:
    _Base = object  # a mixin: verl's worker comes second

_ALL = Dispatch.ONE_TO_ALL  # type: ignore[attr-defined]  # verl makes it at run time


class PacedWorker(_Base):
    """Mixin over verl's trainer workers."""

    def __init__(self, config: DictConfig, *args: Any, **kwargs: Any):
        self._pristine_config = copy.deepcopy(config)  # verl takes keys out of it as it builds its models
        self.teacher: ReferenceTeacher | None = None
        super().__init__(config, *args, **kwargs)

    @property
    def _engine(self) -> FSDPEngineWithLMHead:
        assert self.actor is not None, "verl builds the actor before anything is asked of it"
        return cast(FSDPEngineWithLMHead, self.actor.engine)

    @register(dispatch_mode=_ALL)
    def set_lr_factor(self, factor: float) -> None:
        """Scale the optimizer's learning rate to ``factor`` × ``actor.optim.lr`` under verl's own warm-up and decay.

        Idempotent: always relative to the configured rate, also after a checkpoint was loaded that had another factor.
        """
        engine = self._engine
        scheduler = engine.lr_scheduler
        scheduler.base_lrs = [engine.optimizer_config.lr * factor] * len(scheduler.base_lrs)
        rates = [
            base * schedule(scheduler.last_epoch)
            for base, schedule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    @register(dispatch_mode=_ALL)
    def init_teacher(self, model_path: str, topk: int | str) -> None:
        """Load a teacher beside the actor (``paced.teacher.backend: reference``)."""
        self.teacher = ReferenceTeacher(self._pristine_config, model_path, topk)

    @register(dispatch_mode=_ALL)
    def set_paced_loss(self, loss_fn: Callable[..., Any]) -> None:
        """Train with this loss; it may ask the teacher beside the actor for its output layer."""
        assert self.actor is not None
        self.actor.set_loss_fn(partial(loss_fn, teacher=self.teacher))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_teacher(self, data: TensorDict) -> TensorDict | None:
        """The teacher's fields of a batch; see :meth:`paced_verl.teacher.engine.ReferenceTeacher.answer`."""
        assert self.teacher is not None
        return self.teacher.answer(data)

    @register(dispatch_mode=_ALL)
    def update_teacher(self, decay: float) -> None:
        """Move the teacher's weights towards the student's."""
        assert self.teacher is not None
        self.teacher.follow(self._engine, decay)

    @register(dispatch_mode=_ALL)
    def save_teacher(self, folder: str) -> None:
        """Write the teacher's weights, a file a rank."""
        assert self.teacher is not None
        self.teacher.save(Path(folder))

    @register(dispatch_mode=_ALL)
    def load_teacher(self, folder: str) -> None:
        """Read the teacher's weights."""
        assert self.teacher is not None
        self.teacher.load(Path(folder))


class PacedActorRolloutRefWorker(PacedWorker, ActorRolloutRefWorker):
    """For trainers whose rollouts share their GPUs."""


class PacedDetachActorWorker(PacedWorker, DetachActorWorker):
    """For the trainer whose rollouts have their own."""


PACED_WORKERS: dict[type, type] = {
    ActorRolloutRefWorker: PacedActorRolloutRefWorker,
    DetachActorWorker: PacedDetachActorWorker,
}
"""verl's worker: ours in its place."""
