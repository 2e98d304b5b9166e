"""Capabilities that share a run: shares as decided, tokens counted, a budget that ends it, a kill between decisions."""

from __future__ import annotations

import json
from collections import Counter

import polars as pl
import pytest

from paced_verl.capability.table import Capabilities
from paced_verl.fingerprint import prompt_hash
from tests.e2e.harness import Workplace

NAMES = ("three", "four", "five")
EVERY, STEPS, BATCH, ROLLOUTS, LONGEST, PROBES = 2, 8, 8, 2, 32, 2
MOST = BATCH * ROLLOUTS * LONGEST
"""Tokens of a step at most."""
BUDGET = 2 * MOST + 180


def with_skills(workplace: Workplace) -> pl.DataFrame:
    """The training data with a column that says how long a word is, and some rows twice."""
    data = pl.read_parquet(workplace.models / "data" / "train.parquet")
    length = data["reward_model"].struct.field("ground_truth").str.len_chars() - 3
    data = data.with_columns(skill=pl.Series([NAMES[i] for i in length]))
    data = pl.concat([data, data.head(3)])
    data.write_parquet(workplace.folder / "train.parquet")
    return data


def test_shares_and_tokens_are_as_decided_and_the_budget_ends_a_run_that_was_killed(workplace: Workplace) -> None:
    data = with_skills(workplace)
    overrides = [
        f"data.train_files={workplace.folder}/train.parquet",
        f"paced.capability={{column: skill, every_steps: {EVERY}, budget: {BUDGET}, "
        f"requirement: {{three: 0.25, four: 0.25, five: 0.5}}, probe: {{prompts: {PROBES}, samples: 1}}}}",
        "paced.weight.estimate=posterior",
    ]
    workplace.launch_and_kill(3, *overrides, steps=STEPS)
    ended = workplace.launch(*overrides, steps=STEPS)
    assert ended.code == 0, ended.tail()
    run = workplace.run()

    # It ended before its steps did, with a checkpoint, and could not have cost more than it had.
    last = workplace.last_checkpoint()
    spent, left = run.series("paced/budget/trained"), run.series("paced/budget/left")
    assert 3 < last < STEPS
    assert sorted(spent) == list(range(1, last + 1))
    assert left[last - 1] >= MOST > left[last] - MOST
    assert all(spent[step] + left[step] == BUDGET for step in spent)

    # Tokens are those of the rows, whatever was killed.
    written = [len(workplace.rollouts(step)) * run.series("response_length/mean")[step] for step in spent]
    assert spent[last] == pytest.approx(sum(written), rel=1e-6)
    by_name = [run.series(f"paced/capability/{name}/tokens") for name in NAMES]
    assert (
        sum(tokens[last] for tokens in by_name)
        == spent[last] + run.series("paced/budget/teacher")[last] + (run.series("paced/budget/probe")[last])
    )

    # Prompts are drawn in the shares that were set, and no probe is among them, nor its twin.
    probes = Capabilities.read(data["skill"].to_list()).set_apart(
        PROBES, [prompt_hash(messages) for messages in data["prompt"].to_list()]
    )
    assert len(probes.names) == len(probes.probes) == 3
    held_out = {data["prompt"][row][-1]["content"] for rows in probes.probes for row in rows.tolist()}
    owed: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
    skill_of = dict(zip((prompt[-1]["content"] for prompt in data["prompt"]), data["skill"], strict=True))
    for step in spent:
        rows = [question_of(rollout["input"], skill_of) for rollout in workplace.rollouts(step)]
        assert not set(rows) & held_out
        # A prompt may be drawn twice in a step, where its capability's epoch ends.
        owed.subtract({name: BATCH * sum(skill_of[row] == name for row in rows) / len(rows) for name in NAMES})
        owed.update({name: BATCH * run.series(f"paced/capability/{name}/planned")[step] for name in NAMES})
    assert all(abs(behind) < 1.5 for behind in owed.values()), owed

    # A row a decision and a capability, the last one's outcome included.
    history = pl.read_parquet(workplace.checkpoints / "paced" / "capability" / "history.parquet")
    assert history["step"].unique().sort().to_list() == list(range(1, last + 1, EVERY))
    assert sorted(history["capability"].unique()) == sorted(NAMES)
    assert history["after"].null_count() == 0
    first = history.filter(pl.col("step") == 1).sort("capability")
    assert first["planned"].to_list() == pytest.approx([0.5, 0.25, 0.25]), "five, four, three: the requirement"
    assert history["realised_tokens"].sum() == spent[last]

    # Each one's divergence is known, as D³-MOPD wants it.
    assert all(min(run.series(f"paced/capability/{name}/reverse_kl").values()) > 0 for name in NAMES)
    state = json.loads((workplace.checkpoints / f"global_step_{last}" / "paced" / "capability.json").read_text())
    assert state["decided"] == -(-last // EVERY)


def question_of(text: str, known: dict[str, str]) -> str:
    (question,) = {question for question in known if text.endswith(question)}
    return question
