"""Shares of a run: decided by what probes say, kept in tokens, paid from a budget, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from paced_verl import fields
from paced_verl.capability.curriculum import Levels
from paced_verl.capability.policies import _ByName
from paced_verl.capability.protocol import State
from paced_verl.capability.table import Capabilities
from paced_verl.config import CapabilityConfig
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.mix import MixSampler
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.run.capability import Allocation, Shared
from paced_verl.run.measure import Counts
from paced_verl.run.step_rows import StepRows
from paced_verl.run.tables import HISTORY, PROBES, TRANSFER

NAMES = ("code", "maths", "words")
LENGTH = np.array([30, 10, 10])
BATCH, ROLLOUTS, STEPS, EVERY, MOST = 24, 2, 24, 4, 40


class Student:
    """Pass rates that rise with the tokens a capability has had; code's responses are three times as long."""

    def __init__(self, shared: Shared, seed: int = 0):
        self.groups, self.trained = Capabilities.read(SOURCES).groups, np.zeros(3)
        self.shared, self.seed, self.asked, self.length = shared, seed, 0, LENGTH

    @property
    def rate(self) -> np.ndarray:
        return 0.2 + 0.6 * (1 - np.exp(-self.trained / np.array([9000, 3000, 30000])))

    def likelihood(self, which: np.ndarray, responses: Sequence[Sequence[int]]) -> np.ndarray:
        assert not set(which.tolist()) & self.drawn
        assert [len(response) for response in responses] == [int(LENGTH[group]) for group in self.groups[which]]
        return np.log(self.rate)[self.groups[which]]

    def measure(self, which: np.ndarray, samples: int, by: Any = "student") -> Counts:
        assert (np.diff(which) > 0).all()
        assert not set(which.tolist()) & self.drawn
        if by == "teacher":
            tokens = LENGTH[self.groups[which]]
            full = np.full(len(which), samples)
            return Counts(which, full, full, tokens, [[1] * length for length in tokens.tolist()])
        rate = self.rate
        rng = np.random.default_rng([self.seed, self.asked])
        self.asked += 1
        groups = self.groups[which]
        levels = np.array(LEVEL)[which] if self.shared.levels else 0
        k = rng.binomial(samples, np.clip(rate[groups] - HARDER * levels, 0, 1))
        return Counts(which, k, np.full(len(which), samples), samples * LENGTH[groups])

    drawn: set[int]

    def rows(self, prompts: np.ndarray) -> StepRows:
        self.drawn |= set(prompts.tolist())
        each = np.repeat(prompts, ROLLOUTS)
        groups = self.groups[each]
        np.add.at(self.trained, groups, self.length[groups])
        zeros = dict.fromkeys(fields.TEACHER_NAMES, np.zeros(len(each), np.float32))
        return StepRows(
            keys=[f"{i // ROLLOUTS}_{i % ROLLOUTS}_0" for i in range(len(each))],
            prompts=each,
            stages=np.zeros(len(each), np.int64),
            correct=np.zeros(len(each), bool),
            weight=np.ones(len(each), np.float32),
            task=np.ones(len(each), np.float32),
            asked=zeros | {"tokens": np.full(len(each), 50, np.float32)},
            responses=[np.zeros(self.length[group], np.int64) for group in groups.tolist()],
            messages=[None] * len(each),
        )


SOURCES = [NAMES[i % 3] for i in range(600)]
HASHES = [str(i) for i in range(600)]
LEVEL = [i // 3 % 3 for i in range(600)]
HARDER = 0.3
"""Pass rate that each level takes away, with a curriculum."""


class Run:
    """A run without verl: what the trainer does with an allocation."""

    def __init__(self, folder: Path | None = None, **settings: Any):
        given = {"every_steps": EVERY, "probe": {"prompts": 20, "samples": 4}} | settings
        parsed = CapabilityConfig.model_validate(given)
        capabilities = Capabilities.read(SOURCES)
        if parsed.probe is not None:
            capabilities = capabilities.set_apart(parsed.probe.prompts, HASHES)
        of = parsed.curriculum
        levels = of and Levels.read(LEVEL, of.column, of.order, of.by)
        self.shared = Shared(parsed, capabilities, STEPS, BATCH * ROLLOUTS, MOST, 0, folder, levels)
        table = PassRateTable(600)
        table.observe(np.arange(600), np.full(600, 4), np.full(600, 8), 0)
        groups = self.shared.groups
        self.sampler = MixSampler(table, Kernel(), groups=groups.of, names=groups.names, mix=groups.mix, power=1.0)
        self.allocation = Allocation(self.shared, self.sampler)
        self.student = Student(self.shared)
        self.student.drawn = set()

    def steps(self, first: int, last: int) -> Run:
        for step in range(first, last + 1):
            for _ in range(2):  # verl's first step begins twice
                self.allocation.before_step(step, self.student.measure, self.student.likelihood)
            self.allocation.learn(self.student.rows(self.sampler.draw(BATCH)))
        return self


def shares(run: Run) -> np.ndarray:
    tokens = np.array([run.allocation.ledger.spent("trained", name) for name in NAMES])
    return tokens / tokens.sum()


def test_shares_are_those_of_tokens_and_probes_are_never_trained() -> None:
    requirement = {"code": 0.5, "maths": 0.3, "words": 0.2}
    run = Run(policy="task_static", requirement=requirement, floor=0.0).steps(1, STEPS)
    # Code's responses are three times as long: one prompt of three, not one of two.
    assert shares(run) == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    probes = set(np.concatenate(run.shared.capabilities.probes).tolist())
    assert len(probes) == 60
    assert not probes & run.student.drawn


def test_without_probes_shares_follow_the_tokens_that_were_seen() -> None:
    run = Run(policy="uniform", probe=None).steps(1, STEPS)
    assert run.student.asked == 0
    later = Run(policy="uniform", probe=None).steps(1, EVERY)
    before = shares(later)
    assert before[0] == pytest.approx(0.6, abs=0.02), "nothing is known of lengths yet: equal numbers of prompts"
    assert abs(shares(run)[0] - 1 / 3) < 0.5 * abs(before[0] - 1 / 3)


def test_shares_follow_lengths_that_change() -> None:
    """As where another stage begins: code's responses are a third as long from then on, those of words twice."""
    run = Run(policy="uniform").steps(1, 3 * EVERY)
    run.student.length = np.array([10, 10, 20])
    run.steps(3 * EVERY + 1, 4 * EVERY)
    before = run.student.trained.copy()
    run.steps(4 * EVERY + 1, 5 * EVERY)
    trained = run.student.trained - before
    assert trained / trained.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.03), "one decision later"


def test_a_policy_hears_how_many_tokens_the_next_decision_and_the_run_will_take() -> None:
    """Two decisions of a row a prompt, then four of two: what comes is known before the first step."""
    by_step = np.repeat([BATCH, BATCH * ROLLOUTS], [2 * EVERY, STEPS - 2 * EVERY])
    run = Run(policy="task_static")
    run.allocation.shared = replace(run.shared, by_step=by_step)
    heard: list[State] = []

    def propose(state: State) -> np.ndarray:
        heard.append(state)
        return state.r

    policy: Any = SimpleNamespace(propose=propose, metrics=dict, observe=lambda outcome: None)
    run.allocation._policy = policy
    run.steps(1, STEPS)
    row = 3 / np.sum(1 / LENGTH)  # tokens of one, where each capability has a third of them
    assert [state.tokens for state in heard] == pytest.approx([row * BATCH * EVERY * n for n in (1, 1, 2, 2, 2, 2)])
    assert [state.left for state in heard] == pytest.approx([row * BATCH * EVERY * n for n in (10, 9, 8, 6, 4, 2)])


def test_what_each_probe_has_said_is_kept(tmp_path: Path) -> None:
    probe = {"prompts": 20, "samples": 4, "score": "divergence", "sample_every": 4}
    run = Run(tmp_path, probe=probe).steps(1, STEPS)
    run.allocation.after_run(run.student.measure, run.student.likelihood)
    table = pl.read_parquet(tmp_path / PROBES)
    assert table.columns == ["decision", "capability", "prompt", "samples", "successes", "log_likelihood"]
    decisions = STEPS // EVERY
    assert table.height == (decisions + 1) * 60
    for name, rows in zip(NAMES, run.shared.capabilities.probes, strict=True):
        mine = table.filter(pl.col("capability") == name)
        assert mine["prompt"].to_list() == rows.tolist() * (decisions + 1)
    asked = table.group_by("decision").agg(pl.col("samples").sum()).sort("decision")["samples"].to_list()
    assert asked == [240, 240, 0, 0, 240, 0, 240], "the first two, every fourth, and the end"
    first = table.filter(pl.col("decision") == 0).group_by("capability").agg(pl.col("successes").sum() / 80)
    history = pl.read_parquet(tmp_path / HISTORY).filter(pl.col("decision") == 0)
    assert dict(first.rows()) == pytest.approx(dict(history.select("capability", "before").rows()))
    assert table["log_likelihood"].is_finite().all()


def test_the_ledger_holds_what_rows_and_probes_took() -> None:
    run = Run().steps(1, STEPS)
    ledger = run.allocation.ledger
    assert [ledger.spent("trained", name) for name in NAMES] == run.student.trained.astype(int).tolist()
    assert ledger.spent("teacher") == 50 * STEPS * BATCH * ROLLOUTS
    assert ledger.spent("probe") == STEPS // EVERY * 20 * 4 * int(LENGTH.sum())


def test_what_is_read_instead_of_answered_costs_its_tokens_and_the_teachers_once() -> None:
    settings = {"prompts": 20, "samples": 40, "score": "divergence", "sample_every": 4}
    run = Run(probe=settings).steps(1, STEPS - EVERY)
    rate = run.student.rate
    run.steps(STEPS - EVERY + 1, STEPS)
    ledger, decisions, answered = run.allocation.ledger, STEPS // EVERY, 3  # before the first, second and fifth
    assert ledger.spent("probe") == (decisions + 40 * answered) * 20 * int(LENGTH.sum())
    assert ledger.spent("teacher") == 50 * STEPS * BATCH * ROLLOUTS + 20 * int(LENGTH.sum())
    assert run.allocation._decision.before.mean == pytest.approx(rate, abs=0.1)


def test_a_budget_says_when_no_more_steps_can_be_paid() -> None:
    step = BATCH * ROLLOUTS * MOST
    run = Run(budget=5 * step)
    done = 0
    while run.allocation.affordable(1):
        done += 1
        run.steps(done, done)
    ledger = run.allocation.ledger
    assert ledger.left is not None
    assert 0 <= ledger.left < step
    assert done > 5, "responses are shorter than they may be, and what was not used is not lost"
    with pytest.raises(RuntimeError, match="a step has cost more than it can"):
        run.steps(done + 1, done + 4)


def test_the_history_has_a_row_a_decision_and_capability(tmp_path: Path) -> None:
    run = Run(tmp_path, policy="fixed", mix={"code": 0.2, "maths": 0.2, "words": 0.6}).steps(1, STEPS)
    run.allocation.after_run(run.student.measure)
    history = pl.read_parquet(tmp_path / HISTORY)
    assert history.height == 3 * STEPS // EVERY
    assert history["step"].unique().sort().to_list() == [1, 5, 9, 13, 17, 21]
    assert history.filter(pl.col("capability") == "words")["planned"].to_list() == pytest.approx([0.6] * 6)
    assert history["realised_tokens"].sum() == run.student.trained.sum()
    first, second = (history.filter(pl.col("decision") == i) for i in (0, 1))
    assert first["after"].to_list() == second["before"].to_list()
    gain = (first["after"] - first["before"]).to_numpy()
    lost = np.maximum(-gain, 0).sum() / 3
    assert first["reward"][0] == pytest.approx(gain.mean() - 0.5 * lost)


def test_gains_begin_with_the_requirement_and_hear_of_every_decision() -> None:
    run = Run(policy="gains", requirement={"code": 0.2, "maths": 0.2, "words": 0.6}).steps(1, EVERY)
    assert run.allocation._decision is not None
    assert run.allocation._decision.mix == pytest.approx([0.2, 0.2, 0.6])
    run.steps(EVERY + 1, STEPS)
    assert run.allocation._policy is not None
    outcomes = run.allocation._policy.state_dict()["policy"]["outcomes"]
    assert len(outcomes) == STEPS // EVERY - 1
    metrics = run.allocation.metrics()
    assert 0 <= metrics["paced/allocation/better_probability"] <= 1
    assert metrics["paced/capability/code/score"] == run.allocation._decision.before.mean[0]


def test_what_gains_believes_of_the_transfer_is_kept_and_goes_by_names(tmp_path: Path) -> None:
    run = Run(tmp_path, policy="gains")
    run.steps(1, EVERY)
    assert not (tmp_path / TRANSFER).exists(), "no decision has closed"
    run.steps(EVERY + 1, STEPS)
    table = pl.read_parquet(tmp_path / TRANSFER)
    assert table.columns == ["to", "by", "mean", "se", "decision", "tokens"]
    assert set(table["tokens"]) == {EVERY * BATCH * ROLLOUTS * 3 / np.sum(1 / LENGTH)}, "of the first decision"
    assert table["decision"].unique().to_list() == [STEPS // EVERY - 2], "the last that has closed"
    assert isinstance(run.allocation._policy, _ByName)
    model = run.allocation._policy._inner.model  # in the order of names, as NAMES are
    drawn = model.draws(20_000)
    for row in table.iter_rows(named=True):
        each = drawn[:, NAMES.index(row["to"]), NAMES.index(row["by"])]
        assert row["mean"] == pytest.approx(each.mean(), abs=5 * row["se"] / np.sqrt(len(each)))
        assert row["se"] == pytest.approx(each.std(), rel=0.05)
    own = table.filter(pl.col("to") == pl.col("by")).sort("mean")
    assert own["to"].to_list()[-1] == "maths", "what learns fastest by its own tokens"


def test_a_policy_that_knows_no_transfer_keeps_none(tmp_path: Path) -> None:
    Run(tmp_path, policy="task_static").steps(1, STEPS)
    assert (tmp_path / HISTORY).exists()
    assert not (tmp_path / TRANSFER).exists()


def test_a_curriculum_draws_the_level_that_probes_say_is_the_frontier_and_moves_on() -> None:
    probe = {"prompts": 60, "samples": 4}
    run = Run(policy="task_static", probe=probe, curriculum={"column": "level"})
    assert run.sampler.names == tuple(f"{name}/{level}" for name in NAMES for level in range(3))
    run.steps(1, EVERY)
    run.student.drawn.clear()
    run.student.trained[:] = [1e6, 0, 1e6]  # code and words are at .8, .5 and .2, maths at .2, 0 and 0
    run.steps(EVERY + 1, 2 * EVERY)
    drawn = np.array(sorted(run.student.drawn - set(np.concatenate(run.shared.capabilities.probes).tolist())))
    levels, groups = np.array(LEVEL)[drawn], run.student.groups[drawn]
    assert (levels[groups == 0] == 1).mean() > 0.9
    assert (levels[groups == 1] == 0).all()
    assert shares(run) == pytest.approx(np.full(3, 1 / 3), abs=0.02), "capabilities share as before"


def test_the_papers_schedule_goes_by_the_budget_that_is_spent() -> None:
    budget = 10 * BATCH * ROLLOUTS * MOST
    run = Run(policy="task_static", budget=budget, curriculum={"column": "level", "by": "tertiles"}, probe=None)
    run.steps(1, 1)
    part = run.sampler.names.index("code/1")
    code = run.shared.parts.capability == 0
    assert run.sampler.mix[part] / run.sampler.mix[code].sum() == pytest.approx(0.8)
    step = 1
    while run.allocation.ledger.spent("trained") < 0.7 * budget:
        step += 1
        run.steps(step, step)
    run.steps(step + 1, step + EVERY)
    part = run.sampler.names.index("code/2")
    assert run.sampler.mix[part] / run.sampler.mix[code].sum() == pytest.approx(0.75)


def test_kl_headroom_is_told_each_capabilitys_divergence() -> None:
    run = Run(policy="kl_headroom", probe=None, floor=0.0)
    run.steps(1, EVERY)
    assert run.allocation._decision is not None
    assert run.allocation._decision.mix == pytest.approx(np.full(3, 1 / 3)), "nothing was trained yet"
    for _ in range(2):
        run.allocation.learn_divergence(np.array([30.0, 10.0, 0.0]), np.array([100.0, 100.0, 50.0]))
    assert run.allocation.metrics()["paced/capability/code/reverse_kl"] == pytest.approx(0.3)
    run.steps(EVERY + 1, 2 * EVERY)
    assert run.allocation._decision.mix == pytest.approx([0.75, 0.25, 0])
    run.allocation.learn_divergence(np.array([20.0, 0.0, 0.0]), np.array([100.0, 0.0, 0.0]))
    run.steps(2 * EVERY + 1, 2 * EVERY + 1)
    known, fell = np.array([0.2, 0.1]), np.array([0.1, 1e-3])
    assert run.allocation._decision.mix[:2] == pytest.approx(known * fell / (known @ fell)), "the second was not drawn"


@pytest.mark.parametrize("killed", [6, 8, 9])
@pytest.mark.parametrize("policy", ["gains", "greedy", "kl_headroom", "with a curriculum", "by divergence"])
def test_a_run_that_was_killed_decides_as_an_undisturbed_one(tmp_path: Path, policy: str, killed: int) -> None:
    """Within a decision, right before one, and right after it."""
    extra: dict[str, Any] = {"probe": None} if policy == "kl_headroom" else {}
    if policy == "with a curriculum":
        policy, extra = "gains", {"curriculum": {"column": "level"}}
    if policy == "by divergence":
        cheap = {"prompts": 20, "samples": 4, "score": "divergence"}
        policy, extra = "gains", {"probe": cheap, "curriculum": {"column": "level"}}

    def through(run: Run, first: int, last: int) -> Run:
        for step in range(first, last + 1):
            run.steps(step, step)
            run.allocation.learn_divergence(np.array([3.0, 2.0, 1.0]) / step, np.ones(3))
        return run

    whole = through(Run(tmp_path / "whole", policy=policy, warmup=2, **extra), 1, STEPS)
    first = through(Run(tmp_path / "killed", policy=policy, warmup=2, **extra), 1, killed)
    first.allocation.save(tmp_path / "capability.json")
    sampler = first.sampler.state_dict()
    through(first, killed + 1, killed + 2)  # lost with the kill
    second = Run(tmp_path / "killed", policy=policy, warmup=2, **extra)
    second.allocation.load(tmp_path / "capability.json")
    second.sampler.load_state_dict(sampler)
    student = second.student
    again = through(Run(None, policy=policy, warmup=2, **extra), 1, killed).student
    student.trained, student.asked, student.drawn = again.trained, again.asked, again.drawn
    through(second, killed + 1, STEPS)
    assert second.allocation.metrics() == whole.allocation.metrics()
    for file in (HISTORY, *([] if policy == "kl_headroom" else [PROBES])):
        tables = [pl.read_parquet(tmp_path / name / file) for name in ("whole", "killed")]
        assert tables[0].equals(tables[1], null_equal=True)
    assert second.allocation.ledger.state_dict() == whole.allocation.ledger.state_dict()


def test_a_checkpoint_of_other_capabilities_is_refused(tmp_path: Path) -> None:
    run = Run().steps(1, 2)
    run.allocation.save(tmp_path / "capability.json")
    text = (tmp_path / "capability.json").read_text().replace('"words"', '"music"')
    (tmp_path / "capability.json").write_text(text)
    with pytest.raises(ValueError, match="capabilities"):
        Run().allocation.load(tmp_path / "capability.json")
