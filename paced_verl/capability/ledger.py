"""A budget in tokens, by kind and capability, that is promised before it is spent."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, SupportsIndex

from paced_verl.errors import nearest


@dataclass(frozen=True)
class Promise:
    """Tokens that are held for one purpose until it is known how many it took."""

    kind: str
    capability: str
    tokens: int


class Ledger:
    """Counts tokens, and hands out no more than a budget.

    Whoever is about to spend asks for a promise of the most it can take, such as prompts times the longest response,
    and settles it with what it took; the rest is free again. What is not affordable is not promised, and the answer
    comes at once: a loop that spends ends at the first ``None``. So at every moment

        settled + promised <= budget,   and settled is the sum of what was reported, each promise once.

    The state is a checkpoint's: a resumed run counts on from there, promises that were open included, and does not
    count the work that a kill made it do twice.

    Args:
        budget: Tokens; ``None``: without a limit.
        capabilities: Their names.
        limited: Kinds that draw on the budget.
        free: Kinds that are counted only.

    Raises:
        ValueError: A negative budget, or a kind that is both.
    """

    def __init__(
        self,
        budget: int | None,
        capabilities: Sequence[str],
        limited: Sequence[str] = ("student", "teacher"),
        free: Sequence[str] = ("probe",),
    ) -> None:
        if budget is not None and budget < 0:
            raise ValueError(f"ledger: budget must be >= 0 tokens, got {budget}")
        if both := set(limited) & set(free):
            raise ValueError(f"ledger: {', '.join(sorted(both))} cannot be limited and free")
        self.budget, self.limited, self.free = budget, tuple(limited), tuple(free)
        self.capabilities = tuple(capabilities)
        self.settled = {kind: dict.fromkeys(self.capabilities, 0) for kind in (*limited, *free)}
        self.open: dict[int, Promise] = {}
        self._promises = 0  # ever made: the number of the next

    @property
    def promised(self) -> int:
        """Tokens of the limited kinds that are promised and not settled."""
        return sum(promise.tokens for promise in self.open.values() if promise.kind in self.limited)

    @property
    def left(self) -> int | None:
        """Tokens that can still be promised; ``None``: without a limit."""
        if self.budget is None:
            return None
        return self.budget - sum(self.spent(kind) for kind in self.limited) - self.promised

    def spent(self, kind: str | None = None, capability: str | None = None) -> int:
        """Tokens settled, of a kind and of a capability, or of all."""
        kinds = self.settled if kind is None else [self._known(kind, self.settled, "kind")]
        names = self.capabilities if capability is None else [self._known(capability, self.capabilities, "capability")]
        return sum(self.settled[kind][name] for kind in kinds for name in names)

    def promise(self, kind: str, capability: str, tokens: SupportsIndex) -> int | None:
        """Hold tokens.

        Args:
            tokens: The most that will be spent, >= 0.

        Returns:
            The number by which to settle; ``None``: so many are not left.

        Raises:
            ValueError: An unknown kind or capability, or a negative number.
        """
        self._known(kind, self.settled, "kind")
        self._known(capability, self.capabilities, "capability")
        wanted = _tokens(tokens)
        if kind in self.limited and self.left is not None and wanted > self.left:
            return None
        number, self._promises = self._promises, self._promises + 1
        self.open[number] = Promise(kind, capability, wanted)
        return number

    def settle(self, number: int, used: SupportsIndex) -> None:
        """Count what a promise was used for, 0 for nothing, and free the rest.

        Raises:
            ValueError: It is not open (settled before, or never made), or more was used than promised; nothing changes.
        """
        promise = self.open.get(number)
        if promise is None:
            state = "was settled before" if 0 <= number < self._promises else "was never made"
            raise ValueError(f"ledger: promise {number} {state}")
        spent = _tokens(used)
        if spent > promise.tokens:
            raise ValueError(
                f"ledger: {spent} tokens were used of {promise.tokens} promised to {promise.kind} of "
                f"{promise.capability}: promise the most that can be used"
            )
        self.settled[promise.kind][promise.capability] += spent
        del self.open[number]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON would hold it."""
        return {
            **self._settings(),
            "settled": {kind: dict(by_name) for kind, by_name in self.settled.items()},
            "open": [[number, *asdict(promise).values()] for number, promise in self.open.items()],
            "promises": self._promises,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the budget may be another one, which is how a run is given more.

        Raises:
            ValueError: It is of other capabilities or kinds, or more is spent and promised than this budget.
        """
        for key, value in self._settings().items():
            if state[key] != value:
                raise ValueError(f"ledger: in the saved state {key} is {state[key]}, here {value}")
        settled = {kind: dict(by_name) for kind, by_name in state["settled"].items()}
        opened = {number: Promise(*promise) for number, *promise in state["open"]}
        before = self.settled, self.open
        self.settled, self.open = settled, opened
        if self.left is not None and self.left < 0:
            missing = -self.left
            self.settled, self.open = before
            raise ValueError(
                f"ledger: the saved state has spent and promised {missing} tokens more than the budget of {self.budget}"
            )
        self._promises = state["promises"]

    def _settings(self) -> dict[str, Any]:
        return {"capabilities": list(self.capabilities), "limited": list(self.limited), "free": list(self.free)}

    def metrics(self) -> dict[str, float]:
        """Tokens for the log: what is left, where there is a limit; what was spent, by kind, and by capability."""
        found = {f"paced/budget/{kind}": float(self.spent(kind)) for kind in self.settled}
        found |= {f"paced/capability/{name}/tokens": float(self.spent(capability=name)) for name in self.capabilities}
        return found if self.left is None else found | {"paced/budget/left": float(self.left)}

    @staticmethod
    def _known(name: str, names: Any, what: str) -> str:
        if name not in names:
            raise ValueError(f"ledger: no {what} {name!r}. {nearest(name, names)}")
        return name


def _tokens(number: SupportsIndex) -> int:
    """A whole number of tokens; TypeError for any other number."""
    tokens = operator.index(number)
    if tokens < 0:
        raise ValueError(f"ledger: tokens must be >= 0, got {tokens}")
    return tokens
