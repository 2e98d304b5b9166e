"""The one way to learn how the student does on some prompts: for pass rates, probes and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paced_verl.pacing.protocol import IntArray


@dataclass(frozen=True)
class Counts:
    """Correct responses of P prompts; a prompt of which no response was scored has 0 samples.

    Attributes:
        prompts: Positions in the data set, (P,).
        successes: Correct responses, (P,).
        samples: Scored responses, (P,).
        tokens: Tokens that the student generated for them, (P,).
    """

    prompts: IntArray
    successes: IntArray
    samples: IntArray
    tokens: IntArray


Measure = Callable[[IntArray, int], Counts]
"""(positions of the prompts, responses a prompt) → counts, under the student's weights of this moment."""
