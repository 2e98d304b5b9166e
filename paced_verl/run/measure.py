"""The one way to learn how the student, or the teacher, does on some prompts: for pass rates, probes and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
        responses: Token ids of a correct response to each, P, of the teacher's; ``None``: there was none. Responses of
            the student are not kept: none at all.
    """

    prompts: IntArray
    successes: IntArray
    samples: IntArray
    tokens: IntArray
    responses: Sequence[list[int] | None] = ()

    def take(self, places: IntArray) -> Counts:
        """Those at these places, in this order."""
        return Counts(
            self.prompts[places],
            self.successes[places],
            self.samples[places],
            self.tokens[places],
            [self.responses[place] for place in places.tolist()] if self.responses else (),
        )


class Measure(Protocol):
    """Has prompts answered and judged."""

    def __call__(self, which: IntArray, samples: int, by: Responses = "student") -> Counts:
        """Counts under the weights of this moment.

        Args:
            which: Positions of the prompts, (P,), each once.
            samples: Responses a prompt.
            by: Whose.
        """


class Likelihood(Protocol):
    """Has the student read responses."""

    def __call__(self, which: IntArray, responses: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Mean log-probability per token, in nats, under the student's weights of this moment, float64 (P,).

        Args:
            which: Positions of the prompts, (P,), each once.
            responses: Token ids of a response to each, P; NaN where it could not be had.
        """
