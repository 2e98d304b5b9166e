"""What a run's numbers say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paced_verl.report.accuracy import Comparison
from paced_verl.report.run import Run, Status, status
from paced_verl.report.summary import comparisons_of, gain, key_moments, pass_rate_change
from paced_verl.statistics import Estimate


def percent(share: float, digits: int = 1) -> str:
    """``0.583`` as ``58.3 %``, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def interval(estimate: Estimate, signed: bool = False) -> str:
    """The 95 % interval in percent, or in points where a difference is ``signed``; that there is none, where so."""
    low, high = estimate.interval
    if math.isnan(low):
        return "no interval"
    return " to ".join(plus(end) if signed else f"{100 * end:.1f}" for end in (low, high))


def points(estimate: Estimate) -> str:
    """A difference of shares with its interval."""
    label = "" if math.isnan(estimate.standard_error) else "95\u00a0%: "
    return f"{plus(estimate.mean)} points ({label}{interval(estimate, signed=True)})"


def plus(share: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """In the largest unit that leaves a whole number."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def standing(run: Run) -> str:
    """How far the run is, and why it stopped if it did."""
    found = status(run)
    if run.total is None:
        return f"{run.step} steps are logged; how many were planned is not known."
    return f"{run.step} of {run.total} steps are trained{_how(found)}."


def _how(found: Status) -> str:
    if found.state == "running":
        return f"; the run is still going, its last sign of life {duration(found.silent or 0)} old"
    if found.state == "silent":
        return (
            f". No sign of life for {duration(found.silent or 0)}, and no end was noted: it was probably killed, for "
            "want of memory or at its job's time limit; a run that ends by itself says why"
        )
    return ". The run ended with an error" if found.state == "aborted" else ""


def headline(run: Run) -> str:
    """Whether held-out accuracy rose, in one sentence."""
    found, change = key_moments(run), gain(run)
    if not found:
        return "Held-out accuracy was not measured" + (" yet." if run.step == 0 else "; set trainer.test_freq.")
    before, after = found["before"], found["after"]
    if change is None:
        return f"Held-out accuracy was measured once: {percent(after.accuracy.mean)} after step {after.step}."
    words = f"from {percent(before.accuracy.mean)} to {percent(after.accuracy.mean)}, {points(change)}"
    return f"{_verdict(change)} {words}, over {after.step - before.step} steps."


def _verdict(change: Estimate) -> str:
    low, high = change.interval
    if low > 0:
        return "Held-out accuracy rose"
    if high < 0:
        return "Held-out accuracy fell"
    return "Held-out accuracy went" if math.isnan(low) else "Whether held-out accuracy changed is not certain: it went"


def learned(run: Run) -> str:
    """How pass rates on the training prompts changed; empty without two estimates."""
    change = pass_rate_change(run)
    if change is None:
        return ""
    first, *_, last = run.pass_rates
    return (
        f"On the training prompts the pass rate changed by {points(change)} between the estimates after {first} and "
        f"{last} steps."
    )


def beside(first: Run, other: Run) -> list[str]:
    """The first run beside another one, a sentence for each equal budget."""
    return [_beside(other.name, found) for found in comparisons_of(first, other)]


def _beside(name: str, found: Comparison) -> str:
    budget = f"{found.budget:,.0f} {found.at}"
    verdict = {True: "", False: ": not separable", None: ", so nothing can be said"}[found.separable]
    return f"Beside {name} at equal {found.at} ({budget}): {points(found.gain)}{verdict}."


def spent(shares: dict[str, float], saved: float, total: float, trained: float) -> str:
    """Where the tokens went."""
    if not total:
        rows = f" The rows that trained had {trained:,.0f}." if trained else ""
        return f"This run did not count its tokens by kind.{rows}"
    parts = f"{percent(shares['student'], 0)} student rollouts, {percent(shares['estimate'], 0)} pass-rate estimates, "
    parts += f"{percent(shares['teacher'], 0)} teacher, {percent(shares['validation'], 0)} validation"
    less = f" The teacher was spared {saved:,.0f} tokens, of rows that weigh 0." if saved else ""
    return f"{total:,.0f} tokens: {parts}.{less}"


def healthy(names: Sequence[str], judged: int) -> str:
    """What of the metrics is outside of its range."""
    if not judged:
        return "No metrics of PACED are logged, so nothing can be said."
    if not names:
        return f"All {judged} metrics that were looked at are in their healthy range."
    return f"{len(names)} of {judged} metrics are outside of their healthy range: {', '.join(names)}."
