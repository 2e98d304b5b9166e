"""Who computes gradients: student and teacher on one device. It runs in a Ray actor, or by itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from paced_verl.diagnostics.projection import sketch
from paced_verl.gradients.problem import Objective, Problem, Teacher, parameters_of, problem_gradient


@dataclass(frozen=True)
class Recipe:
    """All that a gradient depends on beside its problem.

    Attributes:
        student, teacher: Folders of models, or names on the hub.
        module: What the gradient is of, see :func:`~paced_verl.gradients.problem.parameters_of`.
        objective: What the stage trains.
        responses: How many the student writes a problem, where it does.
        response_length: Tokens of a response at most.
        top_p, top_k: Of the student's sampling, at the objective's temperature; ``top_k`` −1: all tokens.
        dtype: Of both models: ``float32`` or ``bfloat16``.
        dimensions: Numbers that are kept of a gradient.
        seed: Of sampling and projection.
        trust_remote_code: As transformers takes it.
    """

    student: str
    teacher: str
    module: str | None
    objective: Objective
    responses: int
    response_length: int
    top_p: float = 1.0
    top_k: int = -1
    dtype: str = "float32"
    dimensions: int = 16_384
    seed: int = 0
    trust_remote_code: bool = False

    def key(self, problem: Problem) -> str:
        """A short name of this gradient: that of another recipe, problem or weights has another."""
        parts = [dataclasses.asdict(self), dataclasses.astuple(problem), _written(self.student), _written(self.teacher)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Gradient:
    """What is kept of a problem's gradient.

    Attributes:
        prompt: The problem's position in the training set.
        squared_norm: Of the gradient, exactly.
        sketch: (d,) float32, see :func:`paced_verl.diagnostics.projection.sketch`.
        divergence: Mean a token, in nats.
        tokens: Of the responses.
    """

    prompt: int
    squared_norm: float
    sketch: npt.NDArray[np.float32]
    divergence: float
    tokens: int


def sizes_of(recipe: Recipe) -> dict[str, int]:
    """Numbers in each parameter that the gradient is of; the model is built without its weights.

    Raises:
        PacedError: The model has nothing of that name.
    """
    config = AutoConfig.from_pretrained(recipe.student, trust_remote_code=recipe.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.trust_remote_code)
    return {name: parameter.numel() for name, parameter in parameters_of(model, recipe.module).items()}


class Worker:
    """Computes gradients, one problem at a time.

    Args:
        recipe: Its models are loaded here.
    """

    def __init__(self, recipe: Recipe):
        import verl  # noqa: F401  (with it come divergences of one's own: VERL_USE_EXTERNAL_MODULES)

        self.recipe = recipe
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.student = self._load(recipe.student)
        self.teacher = Teacher(self._load(recipe.teacher), recipe.objective.topk)
        self.student.requires_grad_(False)
        self.parameters = list(parameters_of(self.student, recipe.module).values())
        for parameter in self.parameters:
            parameter.requires_grad_()

    def _load(self, path: str) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, self.recipe.dtype), trust_remote_code=self.recipe.trust_remote_code
        )
        return model.to(self.device).eval()

    def gradient(self, problem: Problem) -> Gradient:
        """The gradient of a problem; its responses are sampled where it has none."""
        if not problem.responses:
            problem = dataclasses.replace(problem, responses=self.sampled(problem))
        parts, divergence = problem_gradient(
            self.student, self.teacher, self.parameters, problem, self.recipe.objective
        )
        return Gradient(
            prompt=problem.prompt,
            squared_norm=sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts),
            sketch=sketch(parts, self.recipe.dimensions, self.recipe.seed).numpy(),
            divergence=divergence,
            tokens=sum(map(len, problem.responses)),
        )

    @torch.no_grad()
    def sampled(self, problem: Problem) -> tuple[tuple[int, ...], ...]:
        """Responses of the student, with the token that ends them; the same for a problem whoever samples them."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + problem.prompt)
        own = self.student.generation_config
        # Whatever is not said here is taken from the model's own settings, which a run's servers do not read.
        settings = GenerationConfig(
            do_sample=True, temperature=recipe.objective.temperature, top_p=recipe.top_p, top_k=max(recipe.top_k, 0),
            min_p=0.0, typical_p=1.0, repetition_penalty=1.0, max_new_tokens=recipe.response_length,
            num_return_sequences=recipe.responses, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id,
        )  # fmt: skip
        prompt = torch.tensor([problem.student_prompt], device=self.device)
        output = self.student.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        ends = _as_set(own.eos_token_id)
        return tuple(_until_end(row, ends) for row in output[:, prompt.shape[1] :].tolist())


def _as_set(ids: int | list[int] | None) -> set[int]:
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _until_end(response: list[int], ends: set[int]) -> tuple[int, ...]:
    """Up to the first token that ends it, and with it; what follows is padding."""
    stop = next((place + 1 for place, token in enumerate(response) if token in ends), len(response))
    return tuple(response[:stop])


def _written(model: str) -> list[int]:
    """When a folder's weights were written: the same path may hold others later."""
    return sorted(file.stat().st_mtime_ns for file in Path(model).glob("*.safetensors"))
