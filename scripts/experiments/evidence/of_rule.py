"""The page's block on the rule for defaults."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.experiments.evidence import defaults
from scripts.experiments.evidence.contrasts import Runs
from scripts.experiments.evidence.shown import priced, short, shown
from scripts.experiments.evidence.stats import difference
from scripts.experiments.page import lines, wrapped


def block(runs: Runs) -> str:
    """The rule at both ratios, and what it chooses."""
    parts = [_ranking(defaults.ranked(runs, axis), axis) for axis in reversed(defaults.RATIOS)]
    return "\n\n".join([*parts, _choice(runs)])


def _ranking(candidates: Sequence[defaults.Candidate], axis: str) -> str:
    table = [
        [
            found.arm,
            *(priced(found.harm[r]) for r in defaults.NOTHING_TO_GAIN),
            "yes" if found.harmless else "no",
            *(priced(found.gain[r]) for r in defaults.TO_GAIN),
            priced(found.mean),
        ]
        for found in candidates
        if len(found.mean.gaps) or any(len(gap.gaps) for gap in (found.harm | found.gain).values())
    ]
    gone = [found.arm for found in candidates if found.arm not in {row[0] for row in table}]
    harm, gain = (tuple(map(short, group)) for group in (defaults.NOTHING_TO_GAIN, defaults.TO_GAIN))
    said = lines([f"at {axis}", *harm, "non-inferior", *gain, f"mean of {', '.join(gain)}"], table)
    if gone:
        said += "\n\n" + wrapped(f"Not affordable in any regime or seed at {axis}: {', '.join(gone)}.")
    return said


def _choice(runs: Runs) -> str:
    found = {axis: defaults.ranked(runs, axis) for axis in defaults.RATIOS}
    none = [axis for axis, candidates in found.items() if defaults.chosen(candidates) is None]
    said = [f"At {axis} no arm is non-inferior in {_list_of(defaults.NOTHING_TO_GAIN)}." for axis in none]
    candidates = found[defaults.DECIDES]
    best, first = defaults.chosen(candidates), defaults.as_good(candidates)
    if best is not None:
        others = [one for one in candidates if one.harmless and one not in first]
        said.append(
            f"At {defaults.DECIDES} {sum(one.harmless for one in candidates)} arms are. The best mean is that of "
            f"*{first[0].arm}*, {shown(first[0].mean)}; not told from it: "
            + (", ".join(f"*{one.arm}* ({_behind(first[0], one)})" for one in first[1:]) or "none")
            + f". The simplest of these is **{best.arm}**."
        )
        if others:
            said.append("Behind it: " + ", ".join(f"*{one.arm}* by {_behind(first[0], one)}" for one in others) + ".")
    return wrapped(" ".join(said))


def _behind(first: defaults.Candidate, other: defaults.Candidate) -> str:
    return shown(difference(first.mean.gaps, other.mean.gaps)).strip("*").removeprefix("+")


def _list_of(regimes: Sequence[str]) -> str:
    *most, last = map(short, regimes)
    return f"{', '.join(most)} and {last}"
