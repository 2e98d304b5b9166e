"""The page's block on the rule for defaults."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.experiments.evidence import defaults
from scripts.experiments.evidence.contrasts import Runs, by_final
from scripts.experiments.evidence.curves import PROMPTS_FREE
from scripts.experiments.evidence.shown import priced, short, shown
from scripts.experiments.evidence.stats import difference
from scripts.experiments.page import lines, wrapped


def block(runs: Runs) -> str:
    """The rule at both ratios, and what it chooses."""
    found = {axis: defaults.ranked(runs, axis) for axis in reversed(defaults.RATIOS)}
    return _told(found, defaults.DECIDES)


def prompts_free(runs: Runs) -> str:
    """The rule where reading prompts costs the student nothing, of arms whose samples are known."""
    return _told({PROMPTS_FREE: defaults.ranked(runs, PROMPTS_FREE, defaults.ONCE)}, PROMPTS_FREE)


def in_two_stages(runs: Runs) -> str:
    """The rule asked of forward KL and then reverse KL, at both ratios."""
    found = {axis: defaults.ranked(runs, axis, defaults.IN_TWO_STAGES) for axis in reversed(defaults.RATIOS)}
    return _told(found, defaults.DECIDES)


def as_first_written(runs: Runs) -> str:
    """What the rule said when each pair was read where the cheaper of the two ends."""
    best = defaults.ranked(runs, candidates=defaults.OF_THE_MAP, compared=by_final)[0]
    harm = ", ".join(f"{shown(gap)} in {short(regime)}" for regime, gap in best.harm.items())
    return wrapped(
        f"As it was first written, the rule chooses *{best.arm}* at {defaults.DECIDES}: {harm}; {shown(best.mean)} in "
        f"the mean of {', '.join(map(short, defaults.TO_GAIN))}."
    )


def _told(found: dict[str, list[defaults.Candidate]], decides: str) -> str:
    """Candidates by the price at which they were ranked, and the choice at one of these."""
    return "\n\n".join([*(_ranking(ones, at) for at, ones in found.items()), _choice(found, decides)])


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


def _choice(found: dict[str, list[defaults.Candidate]], decides: str) -> str:
    candidates = found[decides]
    none = [at for at, ones in found.items() if defaults.chosen(ones) is None]
    said = [f"An arm passes that is non-inferior in {_list_of(defaults.NOTHING_TO_GAIN)}."]
    said += [f"At {at} none does." for at in none]
    best, first = defaults.chosen(candidates), defaults.as_good(candidates)
    if best is not None:
        others = [one for one in candidates if one.harmless and one not in first]
        said.append(
            f"At {decides} arms that pass there: {sum(one.harmless for one in candidates)} of {len(candidates)}. The "
            f"best mean is that of *{first[0].arm}*, {shown(first[0].mean)}; not told from it: "
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
