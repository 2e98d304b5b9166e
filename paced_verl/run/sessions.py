"""Which rows belong together: the one place that reads verl's keys, ``{uid}_{session}_{output}``.

An agent loop may give several outputs a session (a conversation cut in parts, each a row). They are one rollout: verl
scores the last and copies its reward to the others, and its teacher fields are counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sessions:
    """The sessions of B rows.

    Attributes:
        uids: Of each row's prompt, B strings.
        last: bool (B,): whether the row is the last output of its session, whose score is the rollout's.
    """

    uids: list[str]
    last: npt.NDArray[np.bool_]

    def responses(self) -> npt.NDArray[np.int64]:
        """Sessions that the row's prompt has among these rows: (B,)."""
        counts = Counter(uid for uid, last in zip(self.uids, self.last.tolist(), strict=True) if last)
        return np.array([counts[uid] for uid in self.uids], np.int64)


def sessions(keys: Sequence[str]) -> Sessions:
    """Read the keys of rows, in any order."""
    parts = [key.rsplit("_", 2) for key in keys]
    final: dict[tuple[str, str], int] = {}
    for uid, session, output in parts:
        final[uid, session] = max(final.get((uid, session), 0), int(output))
    last = [final[uid, session] == int(output) for uid, session, output in parts]
    return Sessions([uid for uid, _, _ in parts], np.array(last, bool))
