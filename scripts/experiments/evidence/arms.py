"""What is compared: keys of the ``paced`` block, and what no user would set (placebo, oracle, a smaller batch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

K = 8
Block = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """Attributes:
    block: The keys of ``paced`` that differ from the defaults.
    keep_correct: As ``targets.keep: correct``: a teacher response that is wrong trains nothing.
    shuffled: Pass rates are those of another prompt each, always the same one: the placebo.
    smaller_batch: Batches of as many prompts as have a positive weight in a batch of the paper's.
    for_free: What estimates cost is not counted: an upper bound of what they can be worth.
    another_seed: Of sampling and order: what another seed alone changes.
    predicted: Pass rates are those of a regression on two samples a prompt, a stored response and its likelihood.
    """

    block: Block
    keep_correct: bool = False
    shuffled: bool = False
    smaller_batch: bool = False
    for_free: bool = False
    another_seed: bool = False
    predicted: bool = False

    @property
    def estimates(self) -> bool:
        """Whether pass rates are paid for."""
        return self.block["pass_rate"]["refresh"] != "never"


def _arm(
    *,
    power: float = 0.0,
    explore: float = 0.0,
    skip_zero_weight: bool = True,
    refresh: str = "start",
    samples: int = K,
    teacher_samples: int | None = None,
    **weight: Any,
) -> Block:
    return {
        "weight": weight,
        "sampler": {"power": power, "explore": explore, "skip_zero_weight": skip_zero_weight},
        "pass_rate": {"refresh": refresh, "samples": samples, "teacher_samples": teacher_samples},
    }


UNIFORM = _arm(kernel="uniform", refresh="never")
PRIOR = {"estimate": "posterior", "prior": [1, 1]}

ARMS = {
    "uniform": Arm(UNIFORM),
    "uniform again": Arm(UNIFORM, another_seed=True),
    "uniform, smaller batch": Arm(UNIFORM, smaller_batch=True),
    "weights": Arm(_arm()),
    "weights, zeros drawn": Arm(_arm(skip_zero_weight=False)),
    "sampler .5": Arm(_arm(power=0.5)),
    "sampler": Arm(_arm(power=1.0)),
    "posterior weights": Arm(_arm(estimate="posterior")),
    "posterior sampler": Arm(_arm(power=1.0, estimate="posterior")),
    "posterior sampler, explore": Arm(_arm(power=1.0, explore=0.1, estimate="posterior")),
    "hard filter": Arm(_arm(kernel="hard_filter")),
    "root": Arm(_arm(alpha=0.5, beta=0.5)),
    "(1, 2)": Arm(_arm(alpha=1.0, beta=2.0)),
    "(2, 1)": Arm(_arm(alpha=2.0, beta=1.0)),
    "teacher correct": Arm(UNIFORM, keep_correct=True),
    "teacher gate": Arm(_arm(kernel="uniform", samples=1, teacher_samples=4, teacher="gate")),
    "teacher correct, sampler": Arm(_arm(power=1.0), keep_correct=True),
    "teacher gate, sampler": Arm(_arm(power=1.0, teacher_samples=4, teacher="gate")),
    "sampler, when drawn": Arm(_arm(power=1.0, refresh="draw")),
    "posterior sampler, when drawn": Arm(_arm(power=1.0, refresh="draw", estimate="posterior")),
    "free estimates": Arm(_arm(power=1.0, explore=0.1, refresh="never", **PRIOR)),
    "predicted": Arm(_arm(power=1.0, samples=2), predicted=True),
    "placebo": Arm(_arm(power=1.0), shuffled=True),
    "oracle": Arm(_arm(power=1.0, samples=64), for_free=True),
}
