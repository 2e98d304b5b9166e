"""The PACED advantage in verl's stock synchronous trainer, with a teacher as verl's reference worker."""

from __future__ import annotations

import numpy as np

from tests.e2e.harness import Workplace


class StockWorkplace(Workplace):
    """Without the keys of the ``paced:`` block, which a run in verl's own trainer does not have."""

    def overrides(self, steps: int, machine: str = "cpu") -> list[str]:
        return [override for override in super().overrides(steps, machine) if not override.startswith("paced.")]


def test_the_student_moves_towards_a_teacher_that_verls_reference_worker_loads(workplace: Workplace) -> None:
    stock = StockWorkplace(workplace.folder, workplace.models)
    launched = stock.launch(
        f"actor_rollout_ref.ref.teacher_path={stock.models}/teacher",
        "algorithm.paced.kernel=uniform",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.optim.lr=3e-4",
        "data.train_batch_size=64",  # all prompts in every step: their KLs differ more than a step changes them
        "trainer.save_freq=-1",
        group="advantage",
        steps=12,
    )
    assert launched.code == 0, launched.tail()
    assert f"teacher: {stock.models}/teacher, as verl's reference worker" in launched.log
    run = stock.run()
    assert np.isfinite(list(run.series("actor/grad_norm").values())).all()
    assert min(run.series("actor/grad_norm").values()) > 0

    # Without weights the mean advantage is minus a sampled KL(S ‖ T); verl's own estimate of that KL is k3, on the same
    # tokens. At step 1 it is 0 where the reference worker has the student's weights.
    advantage, kl = (list(run.series(name).values()) for name in ("critic/advantages/mean", "actor/kl_loss"))
    assert len(advantage) == len(kl) == 12
    assert kl[0] > 0.3
    assert advantage[0] < -0.3
    assert np.mean(kl[-3:]) < 0.9 * np.mean(kl[:3])
    assert np.mean(advantage[-3:]) > 0.9 * np.mean(advantage[:3])


def test_nothing_starts_without_a_teacher(workplace: Workplace) -> None:
    stock = StockWorkplace(workplace.folder, workplace.models)
    launched = stock.launch("actor_rollout_ref.rollout.n=4", group="advantage")
    assert launched.code != 0
    assert "paced-verl: this configuration cannot run as written." in launched.log
    assert "actor_rollout_ref.ref.teacher_path=None: the teacher is the student as it starts" in launched.log
    assert "Started a local Ray instance" not in launched.log
    assert not stock.checkpoints.exists()
