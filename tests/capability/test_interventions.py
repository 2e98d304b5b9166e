"""Histories of short runs as arrays, and everything that makes them no interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from paced_verl.capability.headroom import fit_transfer
from paced_verl.capability.interventions import Interventions, requirement_line, utilities
from paced_verl.errors import PacedError

NAMES = ("code", "maths", "words")
TRANSFER = np.array([[0.08, -0.02, 0.0], [0.03, 0.1, 0.0], [0.0, 0.0, 0.05]])
START = np.array([0.2, 0.4, 0.3])
MIXES = {
    "on code": [1.0, 0.0, 0.0],
    "on maths": [0.0, 1.0, 0.0],
    "on words": [0.0, 0.0, 1.0],
    "mixed": [0.2, 0.3, 0.5],
}


def history(mix: list[float], tokens: float = 1e6, **changes: Any) -> list[dict[str, Any]]:
    """What a run leaves, in an order of its own."""
    after = START + (1 - START) * (TRANSFER @ np.sqrt(np.array(mix) * tokens / 1e6))
    rows = [
        {
            "decision": 0,
            "step": 1,
            "reward": 0.1,
            "predicted": float("nan"),
            "predicted_se": float("nan"),
            "capability": name,
            "requirement": 1 / 3,
            "planned": mix[i],
            "realised_tokens": mix[i] * tokens,
            "before": START[i],
            "before_se": 0.01,
            "after": after[i],
            "after_se": 0.01,
        }
        | changes
        for i, name in enumerate(NAMES)
    ]
    return rows[::-1]


def histories(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    return {run: history(mix, **changes) for run, mix in MIXES.items()}


def test_arrays_are_what_the_histories_say_and_give_the_transfer() -> None:
    found = Interventions.of(histories())
    assert found.names == NAMES
    assert found.runs == tuple(MIXES)
    assert found.mixes == pytest.approx(np.array(list(MIXES.values())))
    assert found.tokens == 1e6
    assert found.before == pytest.approx(START)
    assert found.before_se == pytest.approx(np.full(3, 0.01)), "the same prompts: four measurements are no better"
    fit = fit_transfer(found.mixes, found.before, found.before_se * 1e-3, found.after, found.after_se * 1e-3)
    assert fit.mean == pytest.approx(TRANSFER, abs=1e-4)


def test_a_few_more_tokens_are_in_the_mix() -> None:
    given = histories() | {"mixed": history(MIXES["mixed"], tokens=1.1e6)}
    found = Interventions.of(given)
    assert found.mixes[-1] == pytest.approx(np.array(MIXES["mixed"]) * 1.1 / 1.025)
    fit = fit_transfer(found.mixes, found.before, found.before_se * 1e-3, found.after, found.after_se * 1e-3)
    assert fit.mean == pytest.approx(TRANSFER * np.sqrt(1.025), abs=1e-4), "of the mean number of tokens"


@pytest.mark.parametrize(
    ("run", "rows", "words"),
    [
        ("mixed", [], "mixed: expected paced/capability/history.parquet with one decision, but there is none"),
        ("mixed", history([1, 0, 0]) + history([0, 1, 0], decision=1), "mixed: expected one decision.*made 2"),
        ("mixed", history([1, 0, 0])[1:], "capabilities of on code, code, maths, words, but it has code, maths"),
        ("mixed", history([1, 0, 0], before=0.9), "mixed: before it code was at 0.90, before on code at 0.20"),
        ("mixed", history([1, 0, 0], tokens=2e6), "mixed: it trained on 2,000,000 tokens, .* 1,000,000 .median"),
        ("mixed", history([1, 0, 0], tokens=0.0), "trained on 0 tokens"),
        ("mixed", history([1, 0, 0], after=float("nan")), "mixed: words has no scores.*paced.capability.probe"),
    ],
)
def test_what_is_no_intervention_of_the_same_kind_is_refused(run: str, rows: list[Any], words: str) -> None:
    with pytest.raises(PacedError, match=words):
        Interventions.of(histories() | {run: rows})


def test_too_few_are_refused() -> None:
    with pytest.raises(PacedError, match="2 interventions for 3 capabilities"):
        Interventions.of(dict(list(histories().items())[:2]))
    with pytest.raises(PacedError, match="no interventions"):
        Interventions.of({})


def test_scores_that_differ_by_chance_are_one_start() -> None:
    given = histories() | {"mixed": history(MIXES["mixed"], before=0.3, before_se=0.05)}
    assert Interventions.of(given).before[0] == pytest.approx((3 * 0.2 + 0.3) / 4)


def test_the_requirement_is_the_runs_own_or_the_given_one() -> None:
    found = Interventions.of(histories())
    assert found.required(None) == pytest.approx(np.full(3, 1 / 3))
    assert found.required({"words": 0.75, "code": 0.25}) == pytest.approx([0.25, 0, 0.75])
    with pytest.raises(PacedError, match=r"no capability 'cod'\. Did you mean 'code'"):
        found.required({"cod": 1.0})
    with pytest.raises(PacedError, match="add up to 1"):
        found.required({"code": 0.5})
    with pytest.raises(PacedError, match="expected a number for code"):
        found.required({"code": "much"})  # type: ignore[dict-item]
    other = Interventions.of(histories() | {"mixed": history(MIXES["mixed"], requirement=0.2)})
    assert other.requirement is None
    with pytest.raises(PacedError, match=r"--requirement '\{code: 0\.7"):
        other.required(None)


METRIC = "val-core/words/acc/mean@4"


def test_the_utility_is_the_last_that_was_logged_and_the_first_before_training() -> None:
    one = {0: {METRIC: 0.4}, 5: {METRIC: 0.5, "loss": 1.0}, 10: {METRIC: 0.6}, 12: {"loss": 1.0}}
    other = {0: {METRIC: 0.5}, 10: {METRIC: 0.7}}
    after, before = utilities(METRIC, {"one": one, "other": other}, None)
    assert after.tolist() == [0.6, 0.7]
    assert before == pytest.approx(0.45)
    assert utilities(METRIC, {"one": one}, {0: {METRIC: 0.1}, 7: {METRIC: 0.3}})[1] == 0.3


@pytest.mark.parametrize(
    ("metric", "steps", "base", "words"),
    [
        ("val-core/word/acc/mean@4", {1: {METRIC: 0.5}}, None, "one: .* Did you mean 'val-core/words/acc/mean@4'"),
        (METRIC, {0: {METRIC: 0.5}}, None, "one: .* not logged after training"),
        (METRIC, {1: {"loss": 0.5}}, None, r"logged no validation \(trainer.test_freq\)"),
        (METRIC, {1: {METRIC: 0.5}}, None, "at step 0.*val_before_train=True, or give --base"),
        (METRIC, {1: {METRIC: 0.5}}, {1: {"loss": 0.5}}, "the base: "),
    ],
)
def test_a_utility_that_is_not_there_is_refused(metric: str, steps: Any, base: Any, words: str) -> None:
    with pytest.raises(PacedError, match=words):
        utilities(metric, {"one": steps}, base)


def test_the_line_to_paste_adds_up_and_reads_back() -> None:
    names = ("code", "openai/gsm8k", "yes: no")
    for r in (np.full(3, 1 / 3), np.array([0.9999, 0.0001, 0.0]), np.array([0.25, 0.25, 0.5])):
        line = requirement_line(names, r)
        assert "\n" not in line
        read = yaml.safe_load(line)["requirement"]
        assert tuple(read) == names
        assert sum(read.values()) == pytest.approx(1, abs=1e-12)
        assert list(read.values()) == pytest.approx(r, abs=1e-3)
    assert requirement_line(("a", "b"), np.array([0.25, 0.75])) == "requirement: {a: 0.25, b: 0.75}"
