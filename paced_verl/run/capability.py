"""Which capability gets how much of a run: probes, decisions, and the tokens they cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.atomic import replacing
from paced_verl.capability.curriculum import Curriculum, Levels, Parts
from paced_verl.capability.ledger import Ledger
from paced_verl.capability.policies import PolicySettings, make_policy
from paced_verl.capability.protocol import KnowsTransfer, Outcome, Policy, State
from paced_verl.capability.reward import protected_capabilities, reward
from paced_verl.capability.scores import Scores
from paced_verl.capability.table import Capabilities
from paced_verl.config.capability import CapabilityConfig
from paced_verl.pacing.mix import MixSampler
from paced_verl.pacing.protocol import Groups
from paced_verl.run.measure import Likelihood, Measure
from paced_verl.run.probes import Probed, Probes
from paced_verl.run.step_rows import StepRows
from paced_verl.run.tables import Tables

FloatArray = npt.NDArray[np.float64]
TRAINED, TEACHER, PROBE = "trained", "teacher", "probe"
"""Kinds of tokens: of responses that train, that a teacher reads and writes, and of responses to probes."""


@dataclass
class Decision:
    """What was decided, and what has come of it until now.

    Attributes:
        step: The first that it draws for.
        mix: (C,) planned shares of the tokens that train.
        before: What probes said; ``None``: there are none.
        tokens: (C,) trained until now.
        responses: (C,) drawn until now.
        said: What the policy says of it.
    """

    step: int
    mix: FloatArray
    before: Scores | None
    tokens: FloatArray
    responses: FloatArray
    said: dict[str, float]


@dataclass(frozen=True)
class Shared:
    """What a run shares among capabilities, and how.

    Attributes:
        settings: ``paced.capability``.
        capabilities: Of the training prompts, probes set apart.
        steps: Of the run.
        rows: Of a step, at most.
        most_tokens: Of a row's response, at most.
        seed: Of the policy.
        folder: Where the history is kept; ``None``: nowhere.
        levels: Of the prompts' difficulty, for a curriculum.
        attempts: How often a teacher is asked for a correct response to a probe.
        by_step: (steps,) rows of each step; ``None``: all have ``rows``.
    """

    settings: CapabilityConfig
    capabilities: Capabilities
    steps: int
    rows: int
    most_tokens: int
    seed: int
    folder: Path | None
    levels: Levels | None = None
    attempts: int = 1
    by_step: npt.NDArray[np.int64] | None = None

    def rows_of(self, step: int, steps: int) -> int:
        """Rows of so many steps from one on, as far as the run has them."""
        if self.by_step is not None:
            return int(self.by_step[step - 1 : step - 1 + steps].sum())
        return self.rows * max(0, min(steps, self.steps - step + 1))

    @cached_property
    def r(self) -> FloatArray:
        """The requirement, (C,) on the simplex: all alike where none is written.

        Raises:
            PacedError: It names a capability that is not there.
        """
        return self.capabilities.required(self.settings.requirement)

    @cached_property
    def parts(self) -> Parts:
        """What the sampler draws from."""
        return Parts.split(self.capabilities, self.levels)

    @property
    def groups(self) -> Groups:
        """For the sampler, which draws by the requirement until something is decided."""
        return Groups(self.parts.names, self.parts.of, self.r[self.parts.capability] * self.parts.even())


class Allocation:
    """Decides every so many steps, by what probes and rows say, and counts tokens.

    Args:
        shared: What is shared.
        sampler: Draws in the shares that are decided.
    """

    def __init__(self, shared: Shared, sampler: MixSampler):
        self.shared, self.settings, self.capabilities = shared, shared.settings, shared.capabilities
        self.sampler, self.r = sampler, shared.r
        self.ledger = Ledger(self.settings.budget, self.capabilities.names, limited=(TRAINED,), free=(TEACHER, PROBE))
        self.history: list[dict[str, Any]] = []
        self._tables = Tables(shared.folder, self.capabilities.names)
        self._decision: Decision | None = None
        self._decided = 0  # how many times
        # Of a response, where each was drawn last: what a stage or a longer answer changes is followed.
        self._lengths = np.full(len(self.r), np.nan)
        self._divergence = np.zeros((2, len(self.r)))  # Σ reverse KL and tokens since the last decision
        self._known_divergence = np.full(len(self.r), np.nan)  # mean of each, where it was drawn last
        self._tokens_of_decision = 1.0
        self._policy: Policy | None = None
        of = self.settings.curriculum
        self._curriculum = None if of is None else Curriculum(of.by, shared.seed)
        self._probed = np.zeros((2, len(shared.parts.names)))  # correct and all, by part, the last time
        probe = self.settings.probe
        of_each = (self.capabilities.probes, self.capabilities.names)
        self._probes = None if probe is None else Probes(probe, *of_each, attempts=shared.attempts)

    # ------------------------------------------------------------------ decisions

    def before_step(self, step: int, measure: Measure, likelihood: Likelihood | None = None) -> None:
        """Decide, where that is due before a step."""
        if (step - 1) % self.settings.every_steps or (self._decision and self._decision.step == step):
            return
        scores = None if self._probes is None else self._take(self._probes.take(measure, likelihood))
        self._close(scores)
        lengths = self._expected_lengths(scores)
        if self._policy is None:
            self._tokens_of_decision = self._expected_tokens(step, self.settings.every_steps, lengths)
            self._policy = self._make_policy()
        mix = self._policy.propose(self._state(step, scores, lengths))
        nothing = np.zeros(len(mix))
        self._decision = Decision(step, mix, scores, nothing, nothing.copy(), self._policy.metrics())
        self._decided, self._divergence = self._decided + 1, np.zeros_like(self._divergence)
        within, prompts = self._within(step), mix / lengths
        self.sampler.set_mix((prompts / prompts.sum())[self.shared.parts.capability] * within)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(self.capabilities.names, mix, strict=True))
        if self._curriculum is not None:
            parts = zip(self.shared.parts.names, within, strict=True)
            shares += "; of each " + ", ".join(f"{name} {share:.0%}" for name, share in parts if share > 0)
        print(f"[paced] decision {self._decided} before step {step}: {shares}{_in_words(scores)}", flush=True)

    def after_run(self, measure: Measure, likelihood: Likelihood | None = None) -> None:
        """Probe once more, so that the last decision's outcome is known, too."""
        if self._probes is None:
            self._close(None)
        elif self._decision is not None:
            self._close(self._take(self._probes.take(measure, likelihood, last=True)))

    def _take(self, probed: Probed) -> Scores:
        """Keep what probes have said, count what that has cost, and take up what it says of levels."""
        assert self._probes is not None
        self._tables.keep_probes(self._probes, probed, self._decided)
        if (levels := self.shared.levels) is not None:
            amounts = (probed.successes, probed.samples)
            in_parts = (self.shared.parts.count(self.capabilities.probes, levels, n) for n in amounts)
            self._probed = np.stack(list(in_parts))
        for kind, tokens in ((PROBE, probed.read), (TEACHER, probed.taught)):
            for name, number in zip(self.capabilities.names, tokens.tolist(), strict=True):
                self._count(kind, name, int(number))
        return probed.scores

    def _within(self, step: int) -> FloatArray:
        """Share of each part within its capability, (P,)."""
        parts = self.shared.parts
        if self._curriculum is None:
            return parts.even()
        budget, spent = self.settings.budget, self.ledger.spent(TRAINED)
        progress = (step - 1) / self.shared.steps if budget is None else spent / budget
        weighs = ~np.isin(parts.names, self.sampler.without_weight)
        names, (correct, asked) = self.capabilities.names, self._probed
        return self._curriculum.shares(parts, names, progress, self._decided, (correct, asked), weighs)

    def _close(self, scores: Scores | None) -> None:
        """Tell the policy what came of its last decision."""
        last, self._decision = self._decision, None
        if last is None:
            return
        np.divide(last.tokens, last.responses, out=self._lengths, where=last.responses > 0)
        if scores is not None and last.before is not None:
            gain = scores.mean - last.before.mean
            protected = protected_capabilities(self.r, self.settings.protect.top)
            worth = float(reward(self.r, gain, self.settings.protect.beta, protected))
            if self._policy is not None:
                self._policy.observe(
                    Outcome(
                        mix_planned=last.mix,
                        mix_realised=last.tokens,
                        before=last.before.mean,
                        after=scores.mean,
                        se=scores.se,
                        reward=worth,
                        before_se=last.before.se,
                    )
                )
        else:
            worth = float("nan")
        self._record(last, scores, worth)

    def _make_policy(self) -> Policy:
        of, names = self.settings, self.capabilities.names
        return make_policy(
            of.policy,
            PolicySettings(
                names,
                decision_tokens=self._tokens_of_decision,
                floor=of.floor,
                beta=of.protect.beta,
                top=of.protect.top,
                trust=of.trust,
                confidence=of.confidence,
                kappa=of.kappa,
                warmup=of.warmup,
                mix=None if of.mix is None else self.capabilities.vector(of.mix),
                seed=self.shared.seed,
            ),
        )

    def _state(self, step: int, scores: Scores | None, lengths: FloatArray) -> State:
        unknown = np.full(len(self.r), np.nan)
        left = self._expected_tokens(step, self.shared.steps, lengths)
        if self.ledger.left is not None:
            left = min(left, float(self.ledger.left))
        total, tokens = self._divergence
        np.divide(total, tokens, out=self._known_divergence, where=tokens > 0)
        return State(
            r=self.r,
            scores=unknown if scores is None else scores.mean,
            score_se=unknown if scores is None else scores.se,
            spent=np.array([self.ledger.spent(TRAINED, name) for name in self.capabilities.names], np.float64),
            left=left,
            decision=self._decided,
            divergence=None if np.isnan(self._known_divergence).any() else self._known_divergence.copy(),
            tokens=self._expected_tokens(step, self.settings.every_steps, lengths),
        )

    def _expected_lengths(self, scores: Scores | None) -> FloatArray:
        """Tokens of a response, (C,), above 0: as long as when it was drawn last, before that as its probes are."""
        lengths = np.full(len(self.r), float(self.shared.most_tokens)) if scores is None else scores.length
        known = np.isfinite(self._lengths)
        if known.any():
            # Who was not drawn yet is as long as its probes, in the unit of the others.
            scale = self._lengths[known].sum() / lengths[known].sum() or 1.0
            lengths = np.where(known, self._lengths, lengths * scale)
        return np.maximum(lengths, 1e-9)

    def _expected_tokens(self, step: int, steps: int, lengths: FloatArray) -> float:
        """Tokens that so many steps from one on train, by the requirement."""
        return self.shared.rows_of(step, steps) / float(np.sum(self.r / lengths))

    # ------------------------------------------------------------------ tokens

    def learn(self, rows: StepRows) -> None:
        """Count what a step's rows cost."""
        groups = self.capabilities.groups[rows.prompts]
        lengths = np.array([len(response) for response in rows.responses])
        taught = np.where(rows.sessions.last, rows.asked["tokens"], 0).astype(np.int64)
        for group, name in enumerate(self.capabilities.names):
            mine = groups == group
            trained = int(lengths[mine].sum())
            self._count(TRAINED, name, trained)
            self._count(TEACHER, name, int(taught[mine].sum()))
            if self._decision is not None:
                self._decision.tokens[group] += trained
                self._decision.responses[group] += rows.sessions.last[mine].sum()

    def learn_divergence(self, total: FloatArray, tokens: FloatArray) -> None:
        """Add sums of the reverse KL from the teacher (C,) over so many tokens (C,)."""
        self._divergence += np.stack([total, tokens])

    def _count(self, kind: str, name: str, tokens: int) -> None:
        number = self.ledger.promise(kind, name, tokens)
        if number is None:
            raise RuntimeError(
                f"{tokens} tokens ({kind}, {name}) were spent, but {self.ledger.left} are left of "
                f"paced.capability.budget={self.settings.budget}: a step has cost more than it can"
            )
        self.ledger.settle(number, tokens)

    @property
    def most_of_step(self) -> int:
        """Tokens that a step can train on, at most."""
        return self.shared.rows * self.shared.most_tokens

    def affordable(self, steps: int) -> bool:
        """Whether so many more steps cannot cost more than is left."""
        return self.ledger.left is None or steps * self.most_of_step <= self.ledger.left

    # ------------------------------------------------------------------ record, checkpoints

    def metrics(self) -> dict[str, float]:
        """Numbers for the log; shares are the sampler's."""
        found = self.ledger.metrics()
        if self._decision is not None:
            found |= {f"paced/allocation/{name}": value for name, value in self._decision.said.items()}
            total, tokens = self._divergence
            for name, kl, of in zip(self.capabilities.names, total.tolist(), tokens.tolist(), strict=True):
                found |= {f"paced/capability/{name}/reverse_kl": kl / of} if of else {}
            if self._decision.before is not None:
                for name, score in zip(self.capabilities.names, self._decision.before.mean.tolist(), strict=True):
                    found[f"paced/capability/{name}/score"] = score
        return found

    def _record(self, last: Decision, after: Scores | None, worth: float) -> None:
        """Keep a row a capability of what was decided and what came of it."""
        nan = np.full(len(self.r), np.nan)
        columns = {
            "planned": last.mix,
            "realised_tokens": last.tokens,
            "before": nan if last.before is None else last.before.mean,
            "before_se": nan if last.before is None else last.before.se,
            "after": nan if after is None else after.mean,
            "after_se": nan if after is None else after.se,
        }
        shared = {
            "decision": self._decided - 1,
            "step": last.step,
            "policy": self.settings.policy,
            "reward": worth,
            "predicted": last.said.get("predicted", float("nan")),
            "predicted_se": last.said.get("predicted_se", float("nan")),
        }
        for place, (name, weight) in enumerate(zip(self.capabilities.names, self.r.tolist(), strict=True)):
            own = {column: float(values[place]) for column, values in columns.items()}
            self.history.append(shared | {"capability": name, "requirement": weight} | own)
        self._tables.keep_history(self.history)
        if isinstance(self._policy, KnowsTransfer) and (found := self._policy.transfer()) is not None:
            self._tables.keep_transfer(*found, self._decided - 1, self._tokens_of_decision)

    def save(self, file: Path) -> None:
        """Write everything."""
        last = self._decision
        state = {
            "decided": self._decided,
            "lengths": self._lengths,
            "divergence": self._divergence,
            "known_divergence": self._known_divergence,
            "tokens_of_decision": self._tokens_of_decision,
            "decision": None if last is None else {**vars(last), "before": last.before and vars(last.before)},
            "policy": None if self._policy is None else self._policy.state_dict(),
            "probes": None if self._probes is None else self._probes.state_dict(),
            "ledger": self.ledger.state_dict(),
            "history": self.history,
        }
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(state, default=np.ndarray.tolist))

    def load(self, file: Path) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            ValueError: It is of other capabilities.
        """
        state = json.loads(file.read_text())
        self.ledger.load_state_dict(state["ledger"])
        self._decided, self.history = state["decided"], state["history"]
        self._lengths, self._divergence = np.array(state["lengths"]), np.array(state["divergence"])
        self._known_divergence = np.array(state["known_divergence"])
        self._tokens_of_decision, last = state["tokens_of_decision"], state["decision"]
        if state["policy"] is not None:
            self._policy = self._make_policy()
            self._policy.load_state_dict(state["policy"])
        if self._probes is not None:
            self._probes.load_state_dict(state["probes"])
        if last is not None:
            before = last["before"] and Scores(**{name: np.array(values) for name, values in last["before"].items()})
            mix, tokens, responses = (np.array(last[name]) for name in ("mix", "tokens", "responses"))
            self._decision = Decision(last["step"], mix, before, tokens, responses, last["said"])


def _in_words(scores: Scores | None) -> str:
    if scores is None:
        return ""
    return "; probes " + ", ".join(f"{m:.2f} ± {1.96 * e:.2f}" for m, e in zip(scores.mean, scores.se, strict=True))
