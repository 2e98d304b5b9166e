"""Do gradients agree most where p (1 − p) is largest, and where do they point? Before any training, in some regimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from paced_verl.diagnostics.snr import BINS, MIDPOINTS, bins_of, fit_exponents, moments
from paced_verl.divergence.functions import get_divergence
from scripts.experiments.evidence.arms import ARMS
from scripts.experiments.evidence.distil import Distillation
from scripts.experiments.evidence.problems import Problems, mask
from scripts.experiments.evidence.regimes import REGIMES
from scripts.experiments.evidence.world import World, build, fresh, measured

REGIMES_OF_SNR = ("R0 balanced", "R2 hopeless, wrong teacher", "R3 hopeless, right teacher")
SAMPLES = 64
HELD_OUT = 512


def measure(seed: int, folder: Path) -> list[dict[str, Any]]:
    """A row a bin of the pass rate: agreement of the gradients of forward KL, and how they lie to the gradient that
    raises the likelihood of the held-out solutions most."""
    torch.set_num_threads(1)
    rows = []
    for regime in REGIMES_OF_SNR:
        world = build(REGIMES[regime], "reverse", seed, folder / "models")
        generator = torch.Generator().manual_seed(23_000_003 * (seed + 1))
        rates = measured("reverse", world.models.student, world.train, SAMPLES, generator)
        bins = bins_of((rates * SAMPLES).numpy(), np.full(len(rates), SAMPLES))
        gradients, wanted = distillation_gradients(world, seed), likelihood_gradient(world)
        of_bins = {int(b): gradients[torch.from_numpy(bins == b)] for b in np.unique(bins)}
        found = [moments((g @ g.T).double().numpy()).snr2 if len(g) > 1 else np.nan for g in of_bins.values()]
        snr2 = dict(zip(of_bins, map(float, found), strict=True))
        exponents = fit_exponents(np.array([snr2.get(b, np.nan) for b in range(BINS)]))
        for b, g in of_bins.items():
            mean = g.mean(0)
            rows.append(
                {
                    "regime": regime,
                    "seed": seed,
                    "pass_rate": float(MIDPOINTS[b]),
                    "prompts": len(g),
                    "snr2": snr2[b],
                    "length": float(g.norm(dim=1).mean()),
                    "cosine": float(torch.nn.functional.cosine_similarity(mean, wanted, dim=0)),
                    "alpha": float(exponents[0]),
                    "beta": float(exponents[1]),
                }
            )
    return rows


def distillation_gradients(world: World, seed: int) -> torch.Tensor:
    """One a prompt, (N, parameters): of the mean forward KL on one teacher response."""
    run = Distillation(world, ARMS["uniform"], "forward", 1, seed)
    everything = torch.arange(len(world.train))
    responses = run._sampled_by_teachers(everything)
    teacher = run._teacher_logits(everything, world.train.prompts, responses).log_softmax(-1)
    student, value = fresh(world.models.student), get_divergence("forward_kl")
    rows = []
    for i in range(len(everything)):
        said = responses[i : i + 1]
        log_probs = student.response_logits(world.train.prompts[i : i + 1], said).log_softmax(-1)
        counted = mask(said)
        loss = (value(log_probs, teacher[i : i + 1]) * counted).sum() / counted.sum()
        rows.append(_flat(loss, student))
    return torch.stack(rows)


def likelihood_gradient(world: World) -> torch.Tensor:
    """(parameters,): of the mean cross-entropy of held-out solutions; down it the student gets better at all."""
    student = fresh(world.models.student)
    problems: Problems = world.held_out[:HELD_OUT]
    log_probs = student.response_logits(problems.prompts, problems.solutions).log_softmax(-1)
    counted = mask(problems.solutions)
    said = log_probs.gather(-1, problems.solutions[..., None])[..., 0]
    return _flat(-((said * counted).sum(1) / counted.sum(1)).mean(), student)


def _flat(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
