"""Short runs that begin at one checkpoint, as arrays: what they trained on, and the scores before and after.

Each is an ordinary run of a single decision, usually with ``paced.capability.policy`` ``fixed`` or ``one_hot``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from paced_verl.capability.simplex import shares_of
from paced_verl.errors import PacedError, nearest

FloatArray = npt.NDArray[np.float64]
Row = Mapping[str, Any]
"""Of a run's ``history.parquet``: one a decision and capability."""
APART = 4.0
"""Standard errors of a difference by which scores of one and the same student do not differ by chance."""
UNEQUAL = 0.2
"""Share by which an intervention's tokens may differ from the median. What is less than that is in its mix."""


@dataclass(frozen=True)
class Interventions:
    """M interventions on C capabilities.

    Attributes:
        names: (C,) of the capabilities.
        runs: (M,) what the interventions are called.
        mixes: (M, C) tokens that were trained on, in units of ``tokens``: rows add up to 1, or nearly.
        tokens: Of an intervention, on average.
        before: (C,) scores that all began with, the mean of their measurements.
        before_se: (C,) errors of a single measurement: all were asked the same prompts, so that the mean of several is
            hardly nearer to the score over all prompts.
        after, after_se: (M, C) scores after each, and the probes' errors.
        requirement: (C,), or ``None`` where the runs had different ones.
    """

    names: tuple[str, ...]
    runs: tuple[str, ...]
    mixes: FloatArray
    tokens: float
    before: FloatArray
    before_se: FloatArray
    after: FloatArray
    after_se: FloatArray
    requirement: FloatArray | None

    @classmethod
    def of(cls, histories: Mapping[str, Sequence[Row]]) -> Interventions:
        """Put histories, by the runs' names, together.

        Raises:
            PacedError: A run is no intervention, or they are not of one kind: other capabilities, other scores to begin
                with, other numbers of tokens; or there are fewer than capabilities.
        """
        if not histories:
            raise PacedError("no interventions were given")
        runs = tuple(histories)
        by_run = [_one(run, rows) for run, rows in histories.items()]
        names = tuple(by_run[0])
        for run, rows in zip(runs, by_run, strict=True):
            if tuple(rows) != names:
                raise PacedError(
                    f"{run}: expected the capabilities of {runs[0]}, {', '.join(names)}, but it has {', '.join(rows)}"
                )
        if len(runs) < len(names):
            raise PacedError(
                f"{len(runs)} interventions for {len(names)} capabilities: it takes {len(names)} or more. Train on "
                "each alone once, and on a few mixes."
            )

        def column(key: str) -> FloatArray:
            return np.array([[row[key] for row in rows.values()] for rows in by_run], np.float64)

        before, before_se = column("before"), column("before_se")
        _same_start(runs, names, before, before_se)
        tokens = column("realised_tokens")
        total = _same_tokens(runs, tokens.sum(axis=1))
        requirement = column("requirement")
        return cls(
            names=names,
            runs=runs,
            mixes=tokens / total,
            tokens=total,
            before=before.mean(axis=0),
            before_se=np.sqrt(np.mean(before_se**2, axis=0)),
            after=column("after"),
            after_se=column("after_se"),
            requirement=requirement[0] if np.allclose(requirement, requirement[0], atol=1e-6) else None,
        )

    def required(self, given: Mapping[str, float] | None) -> FloatArray:
        """The requirement (C,): the one given, or else the runs' own.

        Raises:
            PacedError: It is no distribution over the capabilities, or there is none.
        """
        if given is None:
            if self.requirement is None:
                raise PacedError(
                    "the interventions had different paced.capability.requirement: say what the run to come is for, "
                    f"--requirement '{{{self.names[0]}: 0.7, …}}'"
                )
            return self.requirement
        return shares_of(given, self.names, "requirement")


def _one(run: str, rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of a run's single decision by capability, sorted by name."""
    if not rows:
        raise PacedError(
            f"{run}: expected paced/capability/history.parquet with one decision, but there is none; it is written "
            "when a run with paced.capability has come to its end"
        )
    decisions = {row["decision"] for row in rows}
    if len(decisions) > 1:
        raise PacedError(
            f"{run}: expected one decision, from the checkpoint to its end, but it has made {len(decisions)}. An "
            "intervention has paced.capability.every_steps of all its steps, and a policy such as fixed."
        )
    for row in rows:
        if not np.isfinite([row[key] for key in ("before", "before_se", "after", "after_se")]).all():
            raise PacedError(
                f"{run}: {row['capability']} has no scores before and after, since the run had no probes. Set "
                "paced.capability.probe."
            )
    return {row["capability"]: row for row in sorted(rows, key=lambda row: str(row["capability"]))}


def _same_start(runs: Sequence[str], names: Sequence[str], before: FloatArray, se: FloatArray) -> None:
    for run, score, error in zip(runs[1:], before[1:], se[1:], strict=True):
        apart = np.abs(score - before[0]) > APART * np.hypot(error, se[0])
        for i in np.flatnonzero(apart)[:1]:
            raise PacedError(
                f"{run}: before it {names[i]} was at {score[i]:.2f}, before {runs[0]} at {before[0, i]:.2f}, which "
                "is no chance: interventions must begin with the same checkpoint and be asked the same probes"
            )


def _same_tokens(runs: Sequence[str], totals: FloatArray) -> float:
    usual = float(np.median(totals))
    worst = int(np.argmax(np.abs(totals - usual)))
    if not usual or abs(totals[worst] - usual) > UNEQUAL * usual:
        raise PacedError(
            f"{runs[worst]}: it trained on {totals[worst]:,.0f} tokens, the interventions on {usual:,.0f} (median): "
            "they must be of equal length in tokens, within a fifth. Give all the same paced.capability.budget, or "
            "other steps."
        )
    return float(totals.mean())


def utilities(
    metric: str, logged: Mapping[str, Mapping[int, Mapping[str, float]]], base: Mapping[int, Mapping[str, float]] | None
) -> tuple[FloatArray, float]:
    """The utility after each intervention (M,), and before them.

    Args:
        metric: Name in the log, such as ``val-core/gsm8k/acc/mean@4``.
        logged: Of each run, its metrics by step. The last one counts, and the one at step 0 for the utility before.
        base: Metrics of a run whose last value is the utility before; ``None``: step 0 of the interventions.

    Raises:
        PacedError: A run has not logged it after training, or none before.
    """
    after = []
    for run, steps in logged.items():
        found = [step for step, values in steps.items() if metric in values and step > 0]
        if not found:
            raise PacedError(f"{run}: {metric} was not logged after training. {_meant(metric, steps)}")
        after.append(steps[max(found)][metric])
    if base is not None:
        own = [step for step, values in base.items() if metric in values]
        if not own:
            raise PacedError(f"the base: {metric} was not logged. {_meant(metric, base)}")
        return np.array(after), float(base[max(own)][metric])
    starts = [steps[0][metric] for steps in logged.values() if metric in steps.get(0, {})]
    if not starts:
        raise PacedError(
            f"no run has logged {metric} at step 0, so the utility before the interventions is not known. Set "
            "trainer.val_before_train=True, or give --base, a run that validated the same student."
        )
    return np.array(after), float(np.mean(starts))


def _meant(metric: str, steps: Mapping[int, Mapping[str, float]]) -> str:
    known = sorted({name for values in steps.values() for name in values if name.startswith("val-")})
    return nearest(metric, known) if known else "The run has logged no validation (trainer.test_freq)."


def requirement_line(names: Sequence[str], r: FloatArray) -> str:
    """``requirement: {…}`` as a configuration has it, in thousandths that add up to 1."""
    exact = 1000 * r
    whole = np.floor(exact + 1e-9)
    missing = round(1000 - whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    shares = {name: round(float(share) / 1000, 3) for name, share in zip(names, whole, strict=True)}
    line = yaml.safe_dump({"requirement": shares}, default_flow_style=None, width=10**6, allow_unicode=True)
    return str(line).strip()
