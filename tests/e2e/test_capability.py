"""Capabilities that share a run: shares as decided, tokens counted, a budget that ends it, a kill between decisions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import product

import polars as pl
import pytest

from paced_verl.capability.table import Capabilities
from paced_verl.fingerprint import prompt_hash
from paced_verl.report.capability import sentences
from paced_verl.report.run import Run
from tests.e2e.harness import Workplace

NAMES = ("three", "four", "five")
EVERY, STEPS, BATCH, ROLLOUTS, LONGEST, PROBES = 2, 8, 8, 8, 32, 2
MOST = BATCH * ROLLOUTS * LONGEST
"""Tokens of a step at most."""
BUDGET = 2 * MOST + 180


@dataclass(frozen=True)
class Case:
    """A policy, with what else is set for it.

    Attributes:
        settings: Of ``paced.capability``, beside those that all have.
        first: Planned shares of the first decision, by name; ``None``: the policy draws them.
        of_five: Share of each level within ``five`` in the first decision; ``None``: not known beforehand.
    """

    settings: str
    first: dict[str, float] | None
    of_five: dict[str, float] | None = None

    @property
    def probes(self) -> int:
        return 0 if "probe: null" in self.settings else PROBES

    @property
    def has_levels(self) -> bool:
        return "curriculum" in self.settings


REQUIRED = {"three": 0.25, "four": 0.25, "five": 0.5}
CASES = {
    "gains": Case(f"probe: {{prompts: {PROBES}, samples: 1, score: divergence, sample_every: 3}}", REQUIRED),
    "fixed": Case(
        f"policy: fixed, mix: {{three: 0.1, four: 0.3, five: 0.6}}, probe: {{prompts: {PROBES}, samples: 1}}",
        {"three": 0.1, "four": 0.3, "five": 0.6},
    ),
    "read": Case(
        f"policy: read, warmup: 2, probe: {{prompts: {PROBES}, samples: 1}}, "
        "curriculum: {column: extra_info.vowels, by: frontier}",
        None,
    ),
    "kl_headroom": Case(
        "policy: kl_headroom, probe: null, curriculum: {column: extra_info.vowels, by: tertiles}",
        REQUIRED,
        {"1": 0.1, "2": 0.8, "3": 0.1},
    ),
}


def with_skills(workplace: Workplace) -> pl.DataFrame:
    """The training data with a column that says how long a word is, how many vowels it has, and some rows twice."""
    data = pl.read_parquet(workplace.models / "data" / "train.parquet")
    word = data["reward_model"].struct.field("ground_truth")
    data = data.with_columns(
        pl.Series("skill", [NAMES[i] for i in word.str.len_chars() - 3]),
        pl.col("extra_info").struct.with_fields(word.str.count_matches("[aeiouAEIOU]").alias("vowels")),
    )
    data = pl.concat([data, data.head(3)])
    data.write_parquet(workplace.folder / "train.parquet")
    return data


@pytest.mark.parametrize("policy", CASES)
def test_shares_and_tokens_are_as_decided_and_the_budget_ends_a_run_that_was_killed(
    policy: str, workplace: Workplace
) -> None:
    case, data = CASES[policy], with_skills(workplace)
    overrides = [
        f"data.train_files={workplace.folder}/train.parquet",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        f"paced.capability={{column: skill, every_steps: {EVERY}, budget: {BUDGET}, "
        f"requirement: {{three: 0.25, four: 0.25, five: 0.5}}, {case.settings}}}",
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
    kinds = ("trained", "teacher", *(["probe"] if case.probes else []))
    assert sum(tokens[last] for tokens in by_name) == sum(run.series(f"paced/budget/{kind}")[last] for kind in kinds)

    # Prompts are drawn in the shares that were set, and no probe is among them, nor its twin.
    capabilities = Capabilities.read(data["skill"].to_list())
    hashes = [prompt_hash(messages) for messages in data["prompt"].to_list()]
    probes = capabilities.set_apart(PROBES, hashes).probes if case.probes else ()
    assert len(probes) == (3 if case.probes else 0)
    questions = [prompt[-1]["content"] for prompt in data["prompt"]]
    held_out = {questions[row] for rows in probes for row in rows.tolist()}
    vowels = data["extra_info"].struct.field("vowels")
    part_of = {
        question: f"{skill}/{level}" if case.has_levels else skill
        for question, skill, level in zip(questions, data["skill"], vowels, strict=True)
    }
    parts = sorted({part for question, part in part_of.items() if question not in held_out})
    planned = {part: run.series(f"paced/capability/{part}/planned") for part in parts}
    owed: Counter[str] = Counter(dict.fromkeys(parts, 0))
    for step in spent:
        rows = [question_of(rollout["input"], part_of) for rollout in workplace.rollouts(step)]
        assert not set(rows) & held_out
        # A prompt may be drawn twice in a step, where its capability's epoch ends.
        owed.subtract({part: BATCH * sum(part_of[row] == part for row in rows) / len(rows) for part in parts})
        owed.update({part: BATCH * planned[part][step] for part in parts})
        assert sum(planned[part][step] for part in parts) == pytest.approx(1)
    assert all(abs(behind) < 1.5 for behind in owed.values()), owed
    if case.of_five is not None:
        of_five = {part.split("/")[1]: planned[part][1] for part in parts if part.startswith("five/")}
        assert {level: share / sum(of_five.values()) for level, share in of_five.items()} == pytest.approx(case.of_five)

    # A row a decision and a capability, the last one's outcome included.
    history = pl.read_parquet(workplace.checkpoints / "paced" / "capability" / "history.parquet")
    assert history["step"].unique().sort().to_list() == list(range(1, last + 1, EVERY))
    assert sorted(history["capability"].unique()) == sorted(NAMES)
    assert history["after"].is_nan().sum() + history["after"].null_count() == (0 if case.probes else len(history))
    first = {row["capability"]: row["planned"] for row in history.filter(pl.col("step") == 1).to_dicts()}
    assert case.first is None or first == pytest.approx(case.first)
    assert sum(first.values()) == pytest.approx(1)
    assert history["realised_tokens"].sum() == spent[last]

    # Each probe's answers and what was read of it, before each decision and after the last.
    file = workplace.checkpoints / "paced" / "capability" / "probes.parquet"
    assert file.exists() == bool(case.probes)
    if file.exists():
        kept = pl.read_parquet(file)
        decided = history["decision"].max() + 1
        assert kept.group_by("decision").len().sort("decision").rows() == [(i, 6) for i in range(decided + 1)]
        assert set(kept["prompt"]) == {row for rows in probes for row in rows.tolist()}

    # What tokens of one do to another is known where the policy has a model of it; the page says who has decided.
    transfer = workplace.checkpoints / "paced" / "capability" / "transfer.parquet"
    assert transfer.exists() == (policy == "gains")
    if transfer.exists():
        pairs = pl.read_parquet(transfer).select("to", "by").rows()
        assert sorted(pairs) == sorted(product(NAMES, NAMES))
    decisions = -(-last // EVERY)
    assert f"{decisions} decisions by the policy {policy} closed." in sentences(Run.read(workplace.checkpoints))

    # Each one's divergence is known, as D³-MOPD wants it.
    assert all(min(run.series(f"paced/capability/{name}/reverse_kl").values()) > 0 for name in NAMES)
    state = json.loads((workplace.checkpoints / f"global_step_{last}" / "paced" / "capability.json").read_text())
    assert state["decided"] == -(-last // EVERY)

    # Launched again it trains the one step that was left over, and ends. One launch shows that for all of them.
    if policy == "fixed":
        again = workplace.launch(*overrides, steps=STEPS)
        assert again.code == 0, again.tail()
        assert workplace.last_checkpoint() == last + int(left[last] >= MOST)
        assert max(workplace.run().series("paced/budget/trained")) == workplace.last_checkpoint()

    # Where probes are read, the teacher has answered some, and the student answers as often as it was told to.
    if "divergence" in case.settings:
        probes = state["probes"]
        assert probes["taken"] == state["decided"]
        assert len(probes["sampled"]) == sum(n < 2 or n % 3 == 0 for n in range(probes["taken"]))
        known = [place for place, response in probes["responses"] if response]
        assert known
        assert all(-20 < one["values"][place] <= 0 for one in probes["sampled"] for place in known)


def question_of(text: str, known: dict[str, str]) -> str:
    (question,) = {question for question in known if text.endswith(question)}
    return question


def test_capabilities_share_rollouts_on_gpus_of_their_own(workplace: Workplace) -> None:
    """separate_async: prompts of the next steps are drawn while one is trained, and each counts for its capability."""
    data, every = with_skills(workplace), 2
    launched = workplace.launch(
        f"data.train_files={workplace.folder}/train.parquet",
        "trainer.v1.trainer_mode=paced_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=4",
        "paced.targets.column=extra_info.solution",
        "paced.weight.estimate=posterior",
        f"paced.capability={{column: skill, every_steps: {every}, policy: fixed, "
        f"mix: {{three: 0.25, four: 0.25, five: 0.5}}, probe: {{prompts: {PROBES}, samples: 1}}}}",
        machine="cpu_separate",
        steps=4,
    )
    assert launched.code == 0, launched.tail()
    run = workplace.run()
    skill = dict(zip([prompt[-1]["content"] for prompt in data["prompt"]], data["skill"], strict=True))
    # Nearly equal lengths: shares of the tokens are about those of the prompts.
    steps = [[skill[question_of(row["input"], skill)] for row in workplace.rollouts(step)] for step in range(1, 5)]
    assert {len(rows) for rows in steps} == {BATCH, 4 * BATCH}, "a prompt of stage 1 has one row, of stage 2 four"
    assert sum(rows.count("five") / len(rows) for rows in steps) / 4 == pytest.approx(0.5, abs=0.1)
    history = pl.read_parquet(workplace.checkpoints / "paced" / "capability" / "history.parquet")
    assert history["step"].unique().sort().to_list() == [1, 3]
    assert history["realised_tokens"].sum() == run.series("paced/budget/trained")[4]
    by_name = [run.series(f"paced/capability/{name}/tokens")[4] for name in NAMES]
    assert min(by_name) > 0
    assert sum(by_name) == sum(run.series(f"paced/budget/{kind}")[4] for kind in ("trained", "teacher", "probe"))
