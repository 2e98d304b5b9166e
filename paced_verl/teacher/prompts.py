"""Prompts as token ids: the student's as verl's agent loop builds them, the teacher's under its own context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from paced_verl.teacher.context import TeacherContext


class Prompts:
    """Builds both prompts of a row.

    Args:
        tokenizer: The student's, which is the teacher's too.
        processor: The multi-modal processor, or ``None``.
        data: verl's ``data`` block (chat template and processor arguments).
        model_type: Hugging Face ``model_type`` of the student.
        prompt_length: verl's ``rollout.prompt_length``: the student's prompt is cut on the left to it, as verl does.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        processor: Any,
        data: Any,
        model_type: str | None,
        prompt_length: int,
    ):
        self.prompt_length = prompt_length
        self._builder = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=data.get("apply_chat_template_kwargs", {}),
            mm_processor_kwargs=data.get("mm_processor_kwargs", {}),
            processor=processor,
        )

    @classmethod
    def of(cls, config: Any, model: Any) -> Prompts:
        """Of verl's whole configuration and its model configuration, where no agent loop has them in hand."""
        return cls(
            tokenizer=model.tokenizer,
            processor=model.processor,
            data=config.data,
            model_type=model.hf_config.model_type,
            prompt_length=config.actor_rollout_ref.rollout.prompt_length,
        )

    def student(self, row: Mapping[str, Any]) -> list[int]:
        """The prompt that the student answers."""
        return list(self._builder.build_initial_tokens(list(row["raw_prompt"])))[-self.prompt_length :]

    def teacher(
        self, row: Mapping[str, Any], context: TeacherContext, shown: Mapping[str, str] | None = None
    ) -> list[int]:
        """The prompt that the teacher answers, and under which it scores.

        Args:
            row: As verl's dataset gives it.
            context: What the teacher sees.
            shown: What the context shows that no row has (:attr:`TeacherContext.needs`).
        """
        if not context.privileged:
            return self.student(row)
        return list(self._builder.build_initial_tokens(context.messages(row, shown)))
