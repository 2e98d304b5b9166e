"""Who decides on mixes, by the name that ``paced.capability.policy`` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paced_verl.capability.actions import actions
from paced_verl.capability.bandit import Ensemble, calibration, upper_bound
from paced_verl.capability.gains import Gains, Prior
from paced_verl.capability.optimum import Aim
from paced_verl.capability.protocol import KnowsTransfer, Outcome, Policy, State
from paced_verl.capability.reward import protected_capabilities
from paced_verl.capability.simplex import hellinger, project
from paced_verl.errors import PacedError
from paced_verl.registry import registered, registering

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PolicySettings:
    """What a run asks of its policy. Arrays are in the order of ``names``.

    Attributes:
        names: Of the capabilities, each once.
        decision_tokens: Tokens that the first decision trains on: the unit of what policies learn.
        floor: Smallest share of a capability.
        beta, top: Losses of the ``top`` most required capabilities count 1 + β times.
        lam, cost: Points of the score that the whole budget is worth, spent where tokens cost 1; relative costs (C,).
        trust: ``gains``: largest squared Hellinger distance from the static mix.
        confidence: ``gains``: the mix is the one with the largest gain over the static one that is this probable.
        prior: ``gains``: of the gains.
        kappa, warmup: ``read``: deviations added to a mean; decisions by chance before the first fit.
        mix: ``fixed``: the mix (C,).
        seed: Of everything that is drawn.
    """

    names: tuple[str, ...]
    decision_tokens: float
    floor: float = 0.0
    beta: float = 0.0
    top: int = 3
    lam: float = 0.0
    cost: FloatArray | None = None
    trust: float = 0.5
    confidence: float = 0.75
    prior: Prior = field(default_factory=Prior)
    kappa: float = 1.0
    warmup: int = 5
    mix: FloatArray | None = None
    seed: int = 0


MakePolicy = Callable[[PolicySettings], Policy]
_POLICIES: dict[str, MakePolicy] = {}


def register_policy(name: str) -> Callable[[MakePolicy], MakePolicy]:
    """Decorator: make a policy known as ``paced.capability.policy``.

    >>> @register_policy("largest_error")
    ... def largest_error(settings):
    ...     return LargestError(settings)

    A policy sees capabilities sorted by name, whatever order the configuration has them in; floors are seen to.

    Raises:
        ValueError: The name is taken.
    """
    return registering(_POLICIES, "policy", name)


def get_policy(name: str) -> MakePolicy:
    """What makes a registered policy.

    Raises:
        PacedError: Nobody has registered it.
    """
    return registered(_POLICIES, "policy", name)


def make_policy(name: str, settings: PolicySettings) -> Policy:
    """A registered policy, for capabilities in the settings' order.

    Raises:
        PacedError: Nobody has registered it; names twice; a mix or costs of another number of capabilities, a floor
            that is too high.
    """
    count = len(settings.names)
    if len(set(settings.names)) != count:
        raise PacedError(f"capabilities {', '.join(settings.names)}: each must have a name of its own")
    for key, values in (("mix", settings.mix), ("cost", settings.cost)):
        if values is not None and np.shape(values) != (count,):
            raise PacedError(f"{key}: expected {count} numbers, one a capability, got shape {np.shape(values)}")
    project(np.full(count, 1 / count), settings.floor)
    return _ByName(get_policy(name), settings)


class _ByName:
    """A policy that sees capabilities in the order of their names: what it does cannot depend on the user's order."""

    def __init__(self, make: MakePolicy, settings: PolicySettings) -> None:
        self._names = sorted(settings.names)
        self._there = np.array([settings.names.index(name) for name in self._names])
        self._back = np.argsort(self._there)
        self._floor = settings.floor
        self._inner = make(replace(self._sorted(settings), names=tuple(self._names)))

    def _sorted(self, record: Any) -> Any:
        arrays = {f.name: getattr(record, f.name) for f in fields(record)}
        moved = {k: np.asarray(v, np.float64)[self._there] for k, v in arrays.items() if isinstance(v, np.ndarray)}
        return replace(record, **moved)

    def propose(self, state: State) -> FloatArray:
        return project(self._inner.propose(self._sorted(state)), self._floor)[self._back]

    def observe(self, outcome: Outcome) -> None:
        self._inner.observe(self._sorted(outcome))

    def state_dict(self) -> dict[str, Any]:
        return {"names": self._names, "policy": self._inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if list(state["names"]) != self._names:
            raise ValueError(f"the state is of capabilities {state['names']}, not {self._names}")
        self._inner.load_state_dict(state["policy"])

    def metrics(self) -> dict[str, float]:
        return self._inner.metrics()

    def transfer(self) -> tuple[FloatArray, FloatArray] | None:
        found = self._inner.transfer() if isinstance(self._inner, KnowsTransfer) else None
        if found is None:
            return None
        places = np.ix_(self._back, self._back)
        return found[0][places], found[1][places]


class Memoryless:
    """A mix that follows from the state alone."""

    def __init__(self, rule: Callable[[State], FloatArray]) -> None:
        self._rule = rule

    def propose(self, state: State) -> FloatArray:
        return self._rule(state)

    def observe(self, outcome: Outcome) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


@register_policy("uniform")
def uniform(settings: PolicySettings) -> Policy:
    """The same share for everyone."""
    return Memoryless(lambda state: np.full(len(state.r), 1 / len(state.r)))


@register_policy("task_static")
def task_static(settings: PolicySettings) -> Policy:
    """The requirement itself."""
    return Memoryless(lambda state: state.r.copy())


@register_policy("one_hot")
def one_hot(settings: PolicySettings) -> Policy:
    """All for what is required most, or equal shares of those."""

    def rule(state: State) -> FloatArray:
        most = (state.r == state.r.max()).astype(np.float64)
        return np.asarray(most / most.sum())

    return Memoryless(rule)


@register_policy("fixed")
def fixed(settings: PolicySettings) -> Policy:
    """The mix of the settings.

    Raises:
        PacedError: They have none, or it is not on the simplex.
    """
    mix = settings.mix
    if mix is None or min(mix) < 0 or abs(sum(mix) - 1) > 1e-6:
        raise PacedError(f"policy fixed: expected shares from 0 to 1 that add up to 1, got mix={mix}")
    return Memoryless(lambda state: mix / mix.sum())


class Remembering:
    """A policy whose knowledge is its outcomes: a state holds them, and loading observes them again."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings
        self.outcomes: list[Outcome] = []
        self._metrics: dict[str, float] = {}

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(replace(outcome, before_se=_before_se(outcome)))

    def state_dict(self) -> dict[str, Any]:
        return {"outcomes": [_plain(one) for one in self.outcomes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__init__(self.settings)  # type: ignore[misc]
        for one in state["outcomes"]:
            values: dict[str, Any] = {k: np.array(v) if isinstance(v, list) else v for k, v in one.items()}
            self.observe(Outcome(**values))

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)


@register_policy("gains")
class GainsPolicy(Remembering):
    """From the static mix towards the best for all that is left, as far as the model of gains is sure of it."""

    def __init__(self, settings: PolicySettings) -> None:
        super().__init__(settings)
        self.model = Gains(len(settings.names), settings.decision_tokens, settings.prior)

    def observe(self, outcome: Outcome) -> None:
        before_se = _before_se(outcome)
        if not self.outcomes:
            self.model.start(outcome.before, before_se)
        elif not np.array_equal(self.outcomes[-1].after, outcome.before):
            self.model.measure(outcome.before, before_se)
        self.model.update(outcome.mix_realised, outcome.after, outcome.se)
        super().observe(outcome)

    def propose(self, state: State) -> FloatArray:
        aim = self.aim(state)
        static = project(state.r, self.settings.floor)
        if not self.outcomes:
            return static
        taken, advantage = self.model.cautious(aim, self.settings.confidence)
        mean, sd = self.model.predict(aim.size * taken[None])
        self._metrics = {
            "advantage": float(advantage.mean()),
            "advantage_se": float(advantage.std()),
            "better_probability": float(np.mean(advantage > 0)),
            "distance": hellinger(taken, static),
            "predicted": float(state.r @ mean[0]),
            "predicted_se": float(np.sqrt(state.r**2 @ sd[0] ** 2)),
        }
        return taken

    def transfer(self) -> tuple[FloatArray, FloatArray] | None:
        return (self.model.transfer, self.model.transfer_se) if self.outcomes else None

    def aim(self, state: State) -> Aim:
        """What the rest of the budget is for."""
        of = self.settings
        tokens = state.tokens or of.decision_tokens
        return Aim(
            r=state.r,
            static=state.r,
            horizon=max(1.0, state.left / tokens),
            beta=of.beta,
            protected=protected_capabilities(state.r, of.top),
            lam=of.lam * state.left / (state.left + state.spent.sum()),
            cost=of.cost,
            trust=of.trust,
            floor=of.floor,
            size=tokens / of.decision_tokens,
        )


@register_policy("read")
class Read(Remembering):
    """The paper's bandit: candidates by the upper bound of an ensemble, after some decisions by chance."""

    STALL, CHECKS = 0.7, 10  # κ shrinks by this where a tenth of the budget has not raised the utility

    def propose(self, state: State) -> FloatArray:
        last = self.outcomes[-1].mix_planned if self.outcomes else None
        candidates = actions(last, state.r, self.settings.top)
        if len(self.outcomes) < max(self.settings.warmup, 2):
            rng = np.random.default_rng([self.settings.seed, state.decision])
            return np.asarray(candidates[rng.integers(len(candidates))])
        budget = self._tokens().sum() + state.left
        ensemble = Ensemble(seed=self.settings.seed)
        rewards = np.array([one.reward for one in self.outcomes])
        ensemble.fit(np.stack([self._input(row, budget) for row in range(len(rewards))]), rewards)
        context = self._context(len(rewards), state.scores, budget)
        mean, sd = ensemble.predict(np.stack([np.concatenate([context, mix]) for mix in candidates]))
        utility = np.array([state.r @ one.after if one.utility is None else one.utility for one in self.outcomes])
        kappa = self._kappa(utility, budget)
        chosen = upper_bound(mean, sd, kappa)
        self._metrics = {
            "predicted": float(mean[chosen]),
            "predicted_se": float(sd[chosen]),
            "kappa": kappa,
            "calibration": calibration(np.cumsum(rewards), utility),
        }
        return np.asarray(candidates[chosen])

    def _tokens(self) -> FloatArray:
        return np.array([one.mix_realised.sum() for one in self.outcomes])

    def _context(self, row: int, scores: FloatArray, budget: float) -> FloatArray:
        """Scores, the share of the budget that is left, and the last decision's mix and gains: (3 C + 1,)."""
        left = 1 - self._tokens()[:row].sum() / budget
        if not row:
            return np.concatenate([scores, [left], np.zeros(2 * len(scores))])
        last = self.outcomes[row - 1]
        return np.concatenate([scores, [left], _shares(last), last.after - last.before])

    def _input(self, row: int, budget: float) -> FloatArray:
        one = self.outcomes[row]
        return np.concatenate([self._context(row, one.before, budget), _shares(one)])

    def _kappa(self, utility: FloatArray, budget: float) -> float:
        tenths = np.floor(self.CHECKS * np.cumsum(self._tokens()) / budget + 1e-9)
        checked = utility[np.flatnonzero(np.diff(tenths, prepend=0) > 0)]
        return float(self.settings.kappa * self.STALL ** np.sum(np.diff(checked) <= 0))


@register_policy("greedy")
def greedy(settings: PolicySettings) -> Policy:
    """``read`` with κ = 0."""
    return Read(replace(settings, kappa=0.0))


@register_policy("kl_headroom")
class KLHeadroom:
    """w ∝ r × reverse KL × max(its fall in the last decision, ε), by the training rows alone (D³-MOPD, 2608.24987).

    D³-MOPD has no requirement: this is the same where all weigh alike. Before everything was trained once it is r;
    before anything has fallen, w ∝ r × reverse KL.
    """

    EPSILON = 1e-3  # nats

    def __init__(self, settings: PolicySettings) -> None:
        self._seen: dict[int, FloatArray] = {}
        self._metrics: dict[str, float] = {}

    def propose(self, state: State) -> FloatArray:
        now = state.divergence
        if now is None:
            return state.r.copy()
        self._seen[state.decision] = now
        earlier = self._seen.get(state.decision - 1)
        fall = np.ones(len(now)) if earlier is None else np.maximum(earlier - now, self.EPSILON)
        weight = state.r * np.maximum(now, 0) * fall
        self._metrics = {"headroom": float(state.r @ now)}
        return np.asarray(weight / weight.sum() if weight.sum() > 0 else state.r)

    def observe(self, outcome: Outcome) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"seen": [[at, row.tolist()] for at, row in self._seen.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = {at: np.array(row) for at, row in state["seen"]}

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)


def _before_se(outcome: Outcome) -> FloatArray:
    return outcome.se if outcome.before_se is None else outcome.before_se


def _plain(outcome: Outcome) -> dict[str, Any]:
    """As JSON holds it."""
    values = {field.name: getattr(outcome, field.name) for field in fields(Outcome)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _shares(outcome: Outcome) -> FloatArray:
    total = outcome.mix_realised.sum()
    return outcome.mix_realised / total if total > 0 else outcome.mix_planned
