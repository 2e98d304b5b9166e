"""How good the student is at each capability, before a decision: by what it answers, or by what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.capability.calibration import Calibration, Estimate, Misfit, estimate, pooled
from paced_verl.capability.scores import Scores, scores_of
from paced_verl.config.capability import ProbeConfig
from paced_verl.pacing.schedule import Responses
from paced_verl.run.measure import Counts, Likelihood, Measure

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probed:
    """Attributes:
    scores: Of each capability.
    successes, samples: Of each probe, (P,): expected successes where it was not sampled.
    answered: Whether it was sampled.
    values: Mean log-probability per token of the teacher's response to each, (P,); NaN: none was read.
    read: (C,) tokens of responses, written by the student or read by it.
    taught: (C,) tokens that the teacher wrote.
    """

    scores: Scores
    successes: FloatArray
    samples: IntArray
    answered: bool
    values: FloatArray
    read: FloatArray
    taught: FloatArray


@dataclass(frozen=True)
class Sampled:
    """A moment when the probes were answered and their responses read. (P,) each.

    Attributes:
        values: Mean log-probability per token of the teacher's response; NaN: there is none.
        successes, samples: Of the student's own.
        length: (C,) mean tokens of these.
    """

    values: FloatArray
    successes: IntArray
    samples: IntArray
    length: FloatArray


class Probes:
    """The probes of a run: P prompts, those of a capability one after the other.

    With ``score: accuracy`` the student answers them each time. With ``score: divergence`` it reads one correct
    response of the teacher to each, which is written before the first decision, and answers at the first two decisions
    and at every ``sample_every``-th: from all that was read and answered follows what reading alone means.

    Args:
        settings: ``paced.capability.probe``.
        rows: Positions of each capability's probes in the data set.
        names: Of the capabilities, C.
        attempts: How often the teacher is asked for a correct response.
    """

    def __init__(self, settings: ProbeConfig, rows: Sequence[IntArray], names: Sequence[str], attempts: int = 1):
        self.settings, self.names, self.attempts = settings, tuple(names), attempts
        self.which = np.concatenate(rows)
        self.sizes = [len(of) for of in rows]
        self.groups = np.repeat(np.arange(len(rows)), self.sizes)
        self.taken = 0
        self._sampled: list[Sampled] = []
        self._responses: dict[int, list[int]] = {}  # the teacher's, by place
        self._misfit = Misfit()

    def take(self, measure: Measure, likelihood: Likelihood | None = None, last: bool = False) -> Probed:
        """Probe the student as it is.

        Args:
            measure: Samples and judges.
            likelihood: Reads; ``score: divergence`` needs it.
            last: After the run: whatever the score, the student answers.

        Raises:
            RuntimeError: The teacher has no correct response to any probe, or none of them could be read.
        """
        reads = self.settings.score == "divergence"
        taught = self._have_written(measure) if reads and not self.taken else self._by_capability({})
        answers = last or self.settings.answers(self.taken)
        values, tokens = self._read(likelihood) if reads else (np.full(len(self.which), np.nan), {})
        read = self._by_capability(tokens)
        self.taken += 1
        guess = None
        if self._sampled:
            before = self._sampled[-1]
            guess = estimate(self._calibration(), values, self.groups, before.successes, before.samples)
        if not answers:
            assert guess is not None, "answers come first"
            scores = Scores(guess.mean, self._error(guess), before.length)
            return Probed(scores, guess.rates * before.samples, before.samples, False, values, read, taught)
        counts = self._ask(measure, np.arange(len(self.which)), self.settings.samples)
        scores = scores_of(counts.successes, counts.samples, counts.tokens, self.sizes)
        read += self._by_capability(dict(enumerate(counts.tokens.tolist())))
        if reads:
            self._sampled.append(Sampled(values, counts.successes, counts.samples, scores.length))
        if guess is not None:
            self._misfit.add(scores.mean - guess.mean, scores.se, guess.se)
            scores = Scores(*pooled(scores.mean, scores.se, guess.mean, self._error(guess)), scores.length)
        return Probed(scores, counts.successes.astype(np.float64), counts.samples, True, values, read, taught)

    def _error(self, guess: Estimate) -> FloatArray:
        """(C,) of a guess, with how wrong others have been."""
        return np.asarray(np.sqrt(guess.se**2 + self._misfit.variance))

    def _calibration(self) -> Calibration:
        """By everything that was read and answered at one moment."""
        columns = [(one.values, self.groups, one.successes, one.samples) for one in self._sampled]
        values, groups, successes, samples = (np.concatenate(column) for column in zip(*columns, strict=True))
        known = np.isfinite(values) & (samples > 0)
        return Calibration.fit(values[known], groups[known], successes[known], samples[known], len(self.names))

    def _ask(self, measure: Measure, places: IntArray, samples: int, by: Responses = "student") -> Counts:
        """Counts of some probes, in the order of their places."""
        which = self.which[places]
        order = np.argsort(which)
        return measure(which[order], samples, by).take(np.argsort(order))

    def _have_written(self, measure: Measure) -> FloatArray:
        """One correct response of the teacher to each probe, as far as it has one; tokens that took, (C,)."""
        taught, left = np.zeros(len(self.names)), np.arange(len(self.which))
        for _ in range(self.attempts):
            if left.size:
                counts = self._ask(measure, left, 1, by="teacher")
                taught += np.bincount(self.groups[left], counts.tokens, len(self.names))
                found = zip(left.tolist(), counts.responses, strict=True)
                self._responses |= {place: response for place, response in found if response is not None}
                left = np.array([place for place in left.tolist() if place not in self._responses], np.int64)
        have = np.bincount(self.groups[list(self._responses)], minlength=len(self.names)).tolist()
        known = ", ".join(f"{name} {n} of {of}" for name, n, of in zip(self.names, have, self.sizes, strict=True))
        print(f"[paced] probes that the teacher has answered correctly: {known}", flush=True)
        if not self._responses:
            raise RuntimeError(
                f"paced.capability.probe.score=divergence reads correct responses of the teacher, and of "
                f"{len(self.which)} probes it answered none correctly (paced.targets.attempts={self.attempts}). Set "
                "score: accuracy, or find out why with `paced-verl targets` and the reward function."
            )
        return taught

    def _read(self, likelihood: Likelihood | None) -> tuple[FloatArray, dict[int, int]]:
        """ℓ of each probe, (P,), NaN where there is no response; the tokens of each that was read, by its place."""
        assert likelihood is not None, "score: divergence reads"
        places = sorted(self._responses, key=lambda place: self.which[place])
        values = np.full(len(self.which), np.nan)
        responses = [self._responses[place] for place in places]
        values[places] = likelihood(self.which[places], responses)
        if not np.isfinite(values).any():
            raise RuntimeError(
                f"paced.capability.probe.score=divergence: of {len(places)} responses the student's servers have read "
                "none, so that nothing is known of the probes; what went wrong first is printed above."
            )
        return values, {place: len(response) for place, response in zip(places, responses, strict=True)}

    def _by_capability(self, tokens: dict[int, int]) -> FloatArray:
        """Sums of tokens by place, (C,)."""
        found = np.zeros(len(self.names))
        for place, amount in tokens.items():
            found[self.groups[place]] += amount
        return found

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything; arrays are as they are."""
        return {
            "taken": self.taken,
            "sampled": [vars(one) for one in self._sampled],
            "responses": [[place, response] for place, response in self._responses.items()],
            "misfit": vars(self._misfit),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, or raise ValueError."""
        sampled = [Sampled(**{name: np.array(column) for name, column in one.items()}) for one in state["sampled"]]
        if any(len(one.values) != len(self.which) for one in sampled):
            raise ValueError(f"the state is of {len(sampled[0].values)} probes, not {len(self.which)}")
        self.taken, self._sampled, self._misfit = state["taken"], sampled, Misfit(**state["misfit"])
        self._responses = {place: list(response) for place, response in state["responses"]}
