"""A run whose probes are mostly read: ``probe.score: divergence``, with how far its scores were from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from paced_verl.capability.scores import scores_of
from paced_verl.pacing.protocol import IntArray
from paced_verl.run.measure import Counts, Measure
from scripts.experiments.capability.distil import EVERY, FEW, Distillation, Plan
from scripts.experiments.capability.problems import NAMES
from scripts.experiments.capability.world import World
from scripts.experiments.evidence.problems import mask, right

CHEAP: Any = FEW | {"score": "divergence"}
TRUTH = 32
"""Responses to a probe that its pass rate is judged by."""


class Reading(Distillation):
    """Beside what any run tells: at every decision without answers, the errors of what was read, and of as many answers
    as other runs have. Their samples come from a stream of their own, so they change no run."""

    def __init__(self, world: World, plan: Plan, seed: int):
        super().__init__(world, plan, seed)
        self.aside = torch.Generator().manual_seed(4_000_037 * (seed + 1))
        self.probes = np.concatenate(self.allocation.capabilities.probes)
        self.answered = 0
        self.errors: dict[str, list[list[float]]] = {"read": [], "answered": []}
        self._decide, self._end = self.allocation.before_step, self.allocation.after_run
        self.allocation.before_step = self.before_step  # type: ignore[method-assign]
        self.allocation.after_run = partial(self._end, likelihood=self.likelihood)  # type: ignore[method-assign]

    def run(self) -> dict[str, Any]:
        return super().run() | {"score_errors": self.errors}

    def before_step(self, step: int, measure: Measure, likelihood: Any = None) -> None:
        """Decide with what is read, and look at what it was worth."""
        answered = self.answered
        self._decide(step, measure, self.likelihood)
        if (step - 1) % EVERY == 0 and self.answered == answered:
            said = self.allocation.metrics()
            read = np.array([said[f"paced/capability/{name}/score"] for name in NAMES])
            few, truth = self._accuracy(FEW["samples"]), self._accuracy(TRUTH)
            for name, values in (("read", read), ("answered", few)):
                self.errors[name].append((values - truth).tolist())

    def _accuracy(self, samples: int) -> np.ndarray:
        """(C,) of so many responses to each probe, from the stream of their own."""
        own, self.generator = self.generator, self.aside
        counts = super().measure(self.probes, samples)
        self.generator = own
        sizes = [len(rows) for rows in self.allocation.capabilities.probes]
        return scores_of(counts.successes, counts.samples, counts.tokens, sizes).mean

    def measure(self, which: IntArray, samples: int, by: str = "student") -> Counts:
        """The student's responses, or the teacher's, judged."""
        if by == "student":
            self.answered += 1
            return super().measure(which, samples)
        problems, responses = self.world.train[torch.from_numpy(which)], self.world.taught[torch.from_numpy(which)]
        sources = np.array(self.world.source)[which]
        correct = np.zeros(len(which), np.int64)
        for name in NAMES:
            mine = sources == name
            rows = torch.from_numpy(mine)
            correct[mine] = right(name, responses[rows], problems.solutions[rows]).numpy()
        lengths = mask(responses).sum(1).long().numpy()
        written = [row[:length].tolist() for row, length in zip(responses, lengths.tolist(), strict=True)]
        kept = [row if is_right else None for row, is_right in zip(written, correct.tolist(), strict=True)]
        return Counts(which, correct, np.ones(len(which), np.int64), lengths, kept)

    @torch.no_grad()
    def likelihood(self, which: IntArray, responses: Sequence[Sequence[int]]) -> np.ndarray:
        """Mean log-probability of each token of the responses, (P,)."""
        prompts = self.world.train.prompts[torch.from_numpy(which)]
        padded = torch.zeros(len(which), self.world.taught.shape[1], dtype=torch.long)
        for row, response in enumerate(responses):
            padded[row, : len(response)] = torch.tensor(list(response))
        said = self.student.response_logits(prompts, padded).log_softmax(-1)
        own = said.gather(-1, padded[..., None])[..., 0].double().numpy()
        return np.array([row[: len(response)].mean() for row, response in zip(own, responses, strict=True)])
