"""The face of a teacher, whoever it is: no types of verl's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from paced_verl.teacher.positions import TopK


@dataclass(frozen=True)
class Media:
    """Images, video and audio of a sequence, as verl's servers take them.

    Attributes:
        data: Lists by ``images``, ``videos``, ``audios``.
        processor_kwargs: For the model's processor.
        processor_output: What the processor made of them before, where it has.
    """

    data: dict[str, Any] | None = None
    processor_kwargs: dict[str, Any] | None = None
    processor_output: Any = None


class Teacher(Protocol):
    """Whoever can score a sequence, and write one."""

    async def top_k(self, sequence_ids: list[int], media: Media, key: str | None) -> TopK:
        """The k most probable tokens after every position of a sequence.

        Args:
            sequence_ids: The teacher's prompt and the response.
            media: What belongs to it besides.
            key: The teacher's, where there are several.
        """

    async def respond(self, prompt_ids: list[int], sampling: dict[str, Any], key: str | None) -> list[int]:
        """A response to a prompt, end of sequence included.

        Args:
            prompt_ids: The teacher's prompt.
            sampling: vLLM sampling parameters.
            key: The teacher's, where there are several.
        """
