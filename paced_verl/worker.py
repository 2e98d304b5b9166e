"""verl's actor worker with the one thing a schedule needs and verl lacks: a learning rate that can be scaled."""

from __future__ import annotations

from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker


class PacedActorRolloutRefWorker(ActorRolloutRefWorker):
    """verl's actor, rollout and reference worker, with :meth:`set_lr_factor`."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_lr_factor(self, factor: float) -> None:
        """Scale the optimizer's learning rate to ``factor`` × ``actor.optim.lr`` under verl's own warm-up and decay.

        Idempotent: always relative to the configured rate, also after a checkpoint was loaded that had another factor.
        """
        engine = self.actor.engine
        scheduler = engine.lr_scheduler
        scheduler.base_lrs = [engine.optimizer_config.lr * factor] * len(scheduler.base_lrs)
        rates = [
            base * schedule(scheduler.last_epoch)
            for base, schedule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
