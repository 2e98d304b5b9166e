"""The one way to learn how the student, or the teacher, does on some prompts: for pass rates, probes and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paced_verl.pacing.protocol import IntArray
from paced_verl.pacing.schedule import Responses


@dataclass(frozen=True)
class Counts:
    """Correct responses of P prompts; a prompt of which no response was scored has 0 samples.

    Attributes:
        prompts: Positions in the data set, (P,).
        successes: Correct responses, (P,).
        samples: Scored responses, (P,).
        tokens: Tokens that were generated for them, (P,).
    """

    prompts: IntArray
    successes: IntArray
    samples: IntArray
    tokens: IntArray


class Measure(Protocol):
    """Has prompts answered and judged."""

    def __call__(self, which: IntArray, samples: int, by: Responses = "student") -> Counts:
        """Counts under the weights of this moment.

        Args:
            which: Positions of the prompts, (P,), each once.
            samples: Responses a prompt.
            by: Whose.
        """
