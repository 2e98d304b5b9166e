"""One run: a policy of the product shares the tokens, with the product's decisions, ledger, sampler and divergences."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.divergence.functions import get_divergence
from paced_verl.pacing.protocol import IntArray
from paced_verl.run.capability import TRAINED, Allocation, Shared
from paced_verl.run.measure import Counts
from paced_verl.run.pass_rates import PassRates
from paced_verl.run.step_rows import StepRows
from scripts.experiments.capability.problems import NAMES, REQUIREMENT
from scripts.experiments.capability.world import HELD_OUT, PASS_RATE_SAMPLES, World
from scripts.experiments.evidence.model import sample
from scripts.experiments.evidence.problems import mask, right

BATCH, EVERY, DECISIONS = 64, 20, 20
MOST_TOKENS = 7  # of a response: six digits and END; what the teacher writes beyond is cut off
TOKENS = 5.4  # of a response in the mean
RATE, WARMUP = 2e-4, 20  # steps until the learning rate is reached: AdamW knows nothing of the student's past
FEW, MANY = {"prompts": 26, "samples": 2}, {"prompts": 128, "samples": 4}
"""Probes: a quarter of the responses that train, the most that the product accepts; and ten times as many."""
ON_THE_WAY = 128
"""Held-out problems of a capability that an accuracy before the end is of."""


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        policy: Its name in the product.
        mix: Shares of ``fixed``.
        decisions: The budget, in decisions of ``EVERY`` steps whose responses have ``TOKENS`` each.
        probe: ``FEW`` or ``MANY``.
        floor: Smallest share.
    """

    policy: str
    mix: Mapping[str, float] | None = None
    decisions: int = DECISIONS
    probe: Mapping[str, int] | None = None
    floor: float = 0.02

    def paced(self, seed: int) -> PacedConfig:
        """The ``paced`` block that says so."""
        budget = round(self.decisions * EVERY * BATCH * TOKENS)
        return PacedConfig.parse(
            {
                "schedule": [{"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}],
                "weight": {"estimate": "posterior"},
                "pass_rate": {"refresh": "start", "samples": PASS_RATE_SAMPLES},
                "sampler": {"power": 1.0, "seed": seed},
                "capability": {
                    "requirement": REQUIREMENT,
                    "policy": self.policy,
                    "mix": self.mix and dict(self.mix),
                    "every_steps": EVERY,
                    "budget": budget,
                    "probe": dict(self.probe or FEW),
                    "floor": self.floor,
                },
            }
        )


class Distillation:
    """A run of a plan in a world. Probes and training draw from streams of their own, the same for all policies."""

    def __init__(self, world: World, plan: Plan, seed: int):
        self.world, self.seed = world, seed
        paced = plan.paced(seed)
        assert paced.capability is not None
        assert paced.capability.probe is not None
        steps = 2 * plan.decisions * EVERY  # more than the budget pays for
        capabilities = world.capabilities(paced.capability.probe.prompts, seed)
        shared = Shared(paced.capability, capabilities, steps, BATCH, MOST_TOKENS, seed, None)
        self.groups = capabilities.groups
        self.rates = PassRates(
            paced,
            paced.build_schedule(steps),
            prompts=len(world.train),
            epoch_size=len(world.train) // BATCH * BATCH,
            batch=BATCH,
            every_prompt=False,
            fingerprint="",
            history=None,
            groups=shared.groups,
        )
        self.allocation = Allocation(shared, self.rates.sampler)  # type: ignore[arg-type]
        self.student = copy.deepcopy(world.student)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=RATE, weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(3_000_017 * (seed + 1))
        self.forward_kl, self.reverse_kl = get_divergence("forward_kl"), get_divergence("reverse_kl")

    def run(self) -> dict[str, Any]:
        """Train until the budget is spent; returns what was decided, what it cost, and accuracies (points, C)."""
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            before, curve = self._judged(HELD_OUT), self._run()
        history, ledger = self.allocation.history, self.allocation.ledger
        planned = np.array([row["planned"] for row in history]).reshape(-1, len(NAMES))
        return {
            "before": before,
            "accuracy": curve,
            "final": self._judged(HELD_OUT),
            "planned": planned.tolist(),
            "tokens": [ledger.spent(TRAINED, name) for name in NAMES],
            "probe_tokens": ledger.spent("probe"),
            "seconds": time.monotonic() - started,
        }

    def _run(self) -> list[list[float]]:
        self.rates.use(self.world.table(), 1)
        curve, step = [self._judged()], 0
        while self.allocation.affordable(1):
            step += 1
            self.allocation.before_step(step, self.measure)
            self._step(step)
            if step % EVERY == 0:
                curve.append(self._judged())
        self.allocation.after_run(self.measure)
        return curve

    @torch.no_grad()
    def _judged(self, count: int = ON_THE_WAY) -> list[float]:
        """Accuracy (C,) of greedy responses to so many held-out problems each.

        There is one answer only, so the greedy response is right if each of its tokens is the likeliest one after those
        before it in the solution: one pass instead of one a token.
        """
        found = []
        for name in NAMES:
            part = self.world.held_out[name][:count]
            solutions = part.solutions[:, :MOST_TOKENS]
            greedy = self.student.response_logits(part.prompts, solutions).argmax(-1)
            found.append(right(name, greedy, solutions).float().mean().item())
        return found

    def _step(self, step: int) -> None:
        """(1/B) Σ w̃ (1/T) Σ_t D_t over prompts of the decision's mix."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARMUP)
        drawn = self.rates.sampler.draw(BATCH)
        which = torch.from_numpy(drawn)
        weights = torch.from_numpy(self.rates.sampler.loss_weights(drawn))
        responses, said = self.world.taught[which, :MOST_TOKENS], self.world.said[which, :MOST_TOKENS]
        counted = mask(responses)
        student = self.student.response_logits(self.world.train.prompts[which], responses).log_softmax(-1)
        value = self.forward_kl(student, said)
        loss = (weights * (value * counted).sum(1) / counted.sum(1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            reverse = (self.reverse_kl(student, said) * counted).sum(1).double().numpy()
        lengths = counted.sum(1).long().numpy()
        total, tokens = (np.bincount(self.groups[drawn], of, len(NAMES)) for of in (reverse, lengths))
        self.allocation.learn_divergence(total, tokens)
        self.allocation.learn(self._rows(drawn, responses.numpy(), lengths, step))

    def _rows(self, drawn: IntArray, responses: IntArray, lengths: IntArray, step: int) -> StepRows:
        """The step as verl's trainer would hand it over."""
        zeros = np.zeros(len(drawn), np.float32)
        return StepRows(
            keys=[f"{step}-{i}_0_0" for i in range(len(drawn))],
            prompts=drawn,
            stages=np.zeros(len(drawn), np.int64),
            correct=np.zeros(len(drawn), bool),
            weight=zeros,
            task=zeros,
            asked=dict.fromkeys(fields.TEACHER_NAMES, zeros) | {"tokens": lengths.astype(np.float32)},
            responses=[row[:length] for row, length in zip(responses, lengths, strict=True)],
            messages=[None] * len(drawn),
        )

    def measure(self, which: IntArray, samples: int, by: str = "student") -> Counts:
        """The student's responses to probes, judged."""
        repeated = torch.from_numpy(which).repeat_interleave(samples)
        problems = self.world.train[repeated]
        responses = sample(self.student, problems.prompts, self.generator)
        sources = np.array(self.world.source)[repeated.numpy()]
        correct = torch.zeros(len(repeated), dtype=torch.bool)
        for name in NAMES:
            mine = torch.from_numpy(sources == name)
            correct[mine] = right(name, responses[mine], problems.solutions[mine])
        tokens = mask(responses).sum(1).long().view(-1, samples).sum(1)
        full = np.full(len(which), samples)
        return Counts(which, correct.view(-1, samples).sum(1).numpy(), full, tokens.numpy())
