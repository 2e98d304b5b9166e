"""Teacher responses from vLLM's offline engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig

from paced_verl.config import PacedConfig
from paced_verl.targets.queue import Waiting
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.prompts import Prompts

CHUNK = 512  # prompts handed to the engine at once


class OfflineEngine:
    """Writes responses with the teacher's model in vLLM's offline engine. One cut at the length limit has no end of
    sequence; it is kept as it is, as in a run."""

    def __init__(
        self,
        config: DictConfig,
        paced: PacedConfig,
        context_of: Callable[[Mapping[str, Any]], TeacherContext],
        teacher: DictConfig,
        model: Any,
    ):
        self.model_path, self.inference, self.context_of = teacher.model_path, teacher.inference, context_of
        self.targets, self.response_length = paced.targets, config.actor_rollout_ref.rollout.response_length
        self.prompts = Prompts.of(config, model)

    def write(self, waiting: Waiting) -> dict[str, float]:
        """Write all rows, ``CHUNK`` at a time; it has no counts of its own."""
        from vllm import LLM, SamplingParams, TokensPrompt  # an endpoint needs no engine

        engine = LLM(
            model=self.model_path,
            dtype=self.inference.dtype,
            tensor_parallel_size=self.inference.tensor_model_parallel_size,
            max_model_len=self.inference.max_model_len,
            gpu_memory_utilization=self.inference.gpu_memory_utilization,
            enforce_eager=self.inference.enforce_eager,
        )
        sampling = SamplingParams(
            temperature=self.targets.temperature, top_p=self.targets.top_p, max_tokens=self.response_length
        )
        while rows := waiting.take(CHUNK):
            inputs = [TokensPrompt(prompt_token_ids=self.prompts.teacher(row, self.context_of(row))) for _, row in rows]
            outputs = engine.generate(inputs, sampling, use_tqdm=False)
            for (prompt, row), output in zip(rows, outputs, strict=True):
                waiting.settle(prompt, waiting.judged(row, list(output.outputs[0].token_ids)))
        return {}
