"""A whole measurement of a student whose success is known exactly: its server is a table, everything else is real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from paced_verl.alignment.distil import descent_direction
from paced_verl.alignment.ideal import ideal_gradient
from paced_verl.alignment.nodes import on_support, stacked
from paced_verl.alignment.result import measured
from paced_verl.alignment.tree import FREE
from paced_verl.checks.models import Limit
from paced_verl.config import AlignmentConfig, ConfigError
from paced_verl.errors import PacedError
from paced_verl.forcing import lengths, tables
from paced_verl.forcing import run as runs
from paced_verl.forcing.ask import Policy, Student
from paced_verl.forcing.questions import STUDENT, Question, Teacher, teachers
from paced_verl.forcing.run import Measurement, Scoring
from paced_verl.forcing.store import Store
from paced_verl.report.alignment import render
from paced_verl.teacher.context import TeacherContext
from tests.alignment.enumerable import EnumerableModel

V, L = 5, 3
END = V
MODELS = [EnumerableModel(V, L, seed=10 + i) for i in range(6)]
TEACHERS = [EnumerableModel(V, L, seed=20 + i) for i in range(6)]


class Table:
    """A server of a table of models: a prompt [100 + i] is the i-th one's; END follows the last token."""

    def __init__(self, models: list[EnumerableModel], seed: int = 0):
        self.models, self.rng, self.asked = models, np.random.default_rng(seed), 0

    async def respond(self, prompt_ids: list[int], sampling: dict[str, Any], key: str | None) -> list[int]:
        self.asked += 1
        await asyncio.sleep(0)
        model, begun = self.models[prompt_ids[0] - 100], tuple(prompt_ids[1:])
        tokens = [*begun]
        while len(tokens) < L:
            tokens.append(int(self.rng.choice(V, p=model.p(tuple(tokens)))))
        return [*tokens, END][len(begun) :][: sampling["max_tokens"]]

    async def top_k(self, sequence_ids: list[int], media: Any, key: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        model, response = self.models[sequence_ids[0] - 100], tuple(sequence_ids[1:])
        rows = []
        for depth in range(len(response) + 1):
            row = np.full(V + 1, -40.0)
            if depth < L:
                row[:V] = np.log(model.p(response[:depth]))
            else:
                row[END] = 0.0
            rows.append(row)
        ids = torch.arange(V + 1, dtype=torch.int32).repeat(len(rows), 1)
        return ids, torch.from_numpy(np.stack(rows)).float()


def judge(row: Any, tokens: Any) -> tuple[str, bool]:
    words = tuple(tokens)[:L]
    return " ".join(map(str, words)), len(tokens) == L + 1 and MODELS[row["index"]].successes[words] == 1


class SamePrompt:
    def teacher(self, row: Any, context: TeacherContext, shown: Any = None) -> list[int]:
        return [100 + row["index"]]


def measurement(folder: Path, seed: int = 0, settings: AlignmentConfig | None = None, **changes: Any) -> Measurement:
    settings = settings or AlignmentConfig(
        **{"questions": 6, "rollouts": 24, "nodes": 12, "visits": 60, "divergence": ("reverse_kl",)} | changes
    )
    policy = Policy(L + 1, frozenset({END}), {"temperature": 1.0})
    student = Student(Table(MODELS, seed), judge, policy)  # type: ignore[arg-type]
    questions = [Question(i, {"index": i, "extra_info": {}}, (100 + i,), float("nan")) for i in range(6)]
    names = [Teacher("model/none", "model", TeacherContext("none"))]
    scoring = Scoring(names, {None: student.servers, "model": Table(TEACHERS)}, SamePrompt(), "solution")
    return Measurement(settings, questions, student, scoring, Store(folder, {"seed": 0}), V + 1, 0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurement, list[Any]]:
    one = measurement(tmp_path_factory.mktemp("done"))
    return one, asyncio.run(one.run(lambda _: None))


def test_measured_success_is_the_true_one(done: Any) -> None:
    one, nodes = done
    found = measured(nodes, one.trees(), one.carriers(), frozenset({END}))
    errors = []
    for node, rate, n in zip(found.nodes, found.rate, found.n, strict=True):
        prefix = one.carriers()[node.question][node.carrier].tokens[: node.position]
        truth = MODELS[node.question].q(prefix)[node.tokens]
        spread = np.sqrt(np.maximum(truth * (1 - truth), 0.002) / n[: len(truth)])
        errors += ((rate[: len(truth)] - truth) / spread).tolist()
    assert len(errors) > 150
    assert np.mean(np.square(errors)) < 1.4, "standard errors"
    assert np.abs(errors).max() < 5.5


def test_the_aggregate_is_the_true_one(done: Any) -> None:
    """Without noise, of the same nodes: by listing all responses of student and teacher."""
    one, nodes = done
    (scored, *_nulls) = one.aligned(nodes)
    found = measured(nodes, one.trees(), one.carriers(), frozenset({END}))
    student, teacher = stacked(found.nodes)
    p, q = on_support(student, "kept"), on_support(teacher[0], "kept")
    truth = np.zeros(p.shape)
    for i, node in enumerate(found.nodes):
        prefix = one.carriers()[node.question][node.carrier].tokens[: node.position]
        truth[i, : len(node.tokens)] = MODELS[node.question].q(prefix)[node.tokens]
    g, d = ideal_gradient(np.exp(p), truth), descent_direction(p, q, "reverse_kl")
    w = scored.scores.weight
    exact = (w * (g * d).sum(-1)).sum() / np.sqrt((w * (g**2).sum(-1)).sum() * (w * (d**2).sum(-1)).sum())
    from paced_verl.alignment.score import interval

    ours = interval(scored.scores)
    assert ours.value == pytest.approx(exact, abs=0.08)
    np.testing.assert_allclose(scored.scores.dd, (d**2).sum(-1), rtol=1e-4)


def test_all_visits_were_made_and_none_too_many(done: Any) -> None:
    one, nodes = done
    from paced_verl.alignment.visits import ROUNDS, missing, plan

    wanted = plan(nodes, one.responses(), ("reverse_kl",), 60)
    assert missing(wanted, one.trees(), frozenset({END}), ROUNDS) == []
    forced = [e for e in one.entries if e.written.rollout.forced != FREE]
    assert len(forced) <= sum(each.visits for each in wanted)
    per_question = sum(len(n.tokens) for n in nodes if n.question == 0 and len(n.tokens) > 1)
    assert sum(each.visits for each in wanted if each.question == 0) <= 60 * per_question


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", [40, 144, 150, 900])
def test_what_is_killed_goes_on_and_loses_or_doubles_nothing(calls: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "CHUNK", 64)
    one = measurement(tmp_path)
    respond = one.student.servers.respond

    async def fails(*args: Any) -> list[int]:
        if one.student.servers.asked >= calls:  # type: ignore[attr-defined]
            raise Killed
        return await respond(*args)

    one.student.servers.respond = fails  # type: ignore[method-assign]
    with pytest.raises(Killed):
        asyncio.run(one.run(lambda _: None))
    kept = len(Store(tmp_path, {"seed": 0}).entries())
    assert kept > calls - 300
    again = measurement(tmp_path, seed=1)
    assert len(again.entries) == kept
    nodes = asyncio.run(again.run(lambda _: None))
    assert len(nodes) == 72
    assert len(Store(tmp_path, {"seed": 0}).entries()) == len(again.entries)
    free = [e for e in again.entries if e.written.rollout.forced == FREE]
    assert len(free) == 6 * 24
    test_all_visits_were_made_and_none_too_many((again, nodes))


def test_a_finished_one_asks_nothing_more(done: Any) -> None:
    one, nodes = done
    again = measurement(one.store.folder)
    assert asyncio.run(again.run(lambda _: None))[0].tokens.tolist() == nodes[0].tokens.tolist()
    assert again.student.servers.asked == 0  # type: ignore[attr-defined]


def test_another_measurement_is_refused_and_a_damaged_part_named(done: Any, tmp_path: Path) -> None:
    one, _ = done
    with pytest.raises(PacedError, match="another measurement: seed=0"):
        Store(one.store.folder, {"seed": 1})
    broken = Store(tmp_path, {})
    (tmp_path / "rollouts" / "000000.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(PacedError, match=r"000000.parquet is damaged"):
        broken.entries()


def test_it_stops_where_the_budget_or_the_interval_says(tmp_path: Path) -> None:
    said: list[str] = []
    one = measurement(tmp_path / "rollouts", budget={"rollouts": 600})
    asyncio.run(one.run(said.append))
    assert 600 <= sum(e.written.rollout.forced != FREE for e in one.entries) < 600 + runs.CHUNK
    assert "the budget is spent" in said[-1]
    one = measurement(tmp_path / "width", budget={"half_width": 1.5})
    asyncio.run(one.run(said.append))
    assert "enough" in said[-1]


def test_who_teaches() -> None:
    contexts = [TeacherContext(name) for name in ("none", "solution")]
    limits: Any = {"big": Limit("big.max_model_len", 9), None: Limit("max_model_len", 7)}
    found = teachers({"big": "math"}, contexts, limits)
    assert [t.name for t in found] == ["big/none", "big/solution", f"{STUDENT}/solution"]
    assert [t.key for t in found] == ["math", "math", None], "verl routes by key, results go by name"
    assert [t.limit.tokens for t in found] == [9, 9, 7]
    with pytest.raises(PacedError, match="no teacher of itself"):
        teachers({}, contexts[:1], limits)


class LongPrompt(SamePrompt):
    """Of question i: i tokens of context, and the prompt."""

    def teacher(self, row: Any, context: TeacherContext, shown: Any = None) -> list[int]:
        return [*[100 + row["index"]] * row["index"], *super().teacher(row, context)]


class Noting(Table):
    """A teacher that reads no more than 8 tokens, one of its own among them, and knows its context from its prompt."""

    async def top_k(self, sequence_ids: list[int], media: Any, key: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(sequence_ids) + 1 <= 8, "no server would have read that"
        context = sum(token >= 100 for token in sequence_ids) - 1
        ids, log_probs = await super().top_k(sequence_ids[context:], media, key)
        return torch.cat([ids[:context], ids]), torch.cat([log_probs[:context], log_probs])


def test_what_does_not_fit_is_left_out_and_counted_and_said_before(tmp_path: Path) -> None:
    """Prompts have 1 to 6 tokens, responses 4 with their end: from question 3 on no server of 8 tokens reads both."""
    short = Teacher("model/none", "model", TeacherContext("none"), Limit("teacher.max_model_len", 8))
    one = measurement(tmp_path, rollouts=12, nodes=4, visits=8)
    one.scoring = Scoring([short], {None: one.student.servers, "model": Noting(TEACHERS)}, LongPrompt(), "solution")
    nodes = asyncio.run(one.run(lambda _: None))
    kept = one.store.nodes()
    assert kept is not None
    counted = tables.unasked(kept, ["model/none"])
    assert counted == [{"teacher": "model/none", "reason": lengths.TOO_LONG, "nodes": 12, "questions": 3}]
    assert {node.question for node in nodes if node.unasked[0]} == {3, 4, 5}
    (scored,) = one.aligned(nodes)
    assert {int(question) for question in scored.scores.question} == {0, 1, 2}

    unlimited = Teacher("model/free", "model", TeacherContext("none"))
    (found,) = lengths.too_long(one.questions, [short, unlimited], LongPrompt(), L + 1, "solution")
    assert (found.questions, found.of, found.hopeless, found.longest) == (3, 6, 0, 6 + L + 1 + 1)
    assert "3 of 6 questions can need up to 11 tokens, and its server reads 8 (teacher.max_model_len)" in str(found)


def test_rollouts_that_are_shown_may_be_as_long_as_responses() -> None:
    questions = [Question(i, {"index": i, "extra_info": {"solution": "x"}}, (100 + i,), 0.5) for i in range(6)]
    limit = Limit("key", 12)
    two = Teacher("model/two_rollouts", "model", TeacherContext("two_rollouts"), limit)
    (found,) = lengths.too_long(questions, [two], LongPrompt(), 3, "solution")
    assert (found.questions, found.longest) == (4, 6 + 3 * 3 + 1), "1 to 6 of the prompt, 3 × 3, and 1"
    other = Teacher("model/other", "model", TeacherContext("other"), limit)
    assert lengths.too_long(questions, [other], LongPrompt(), 3, "solution") == [], "its length is known"


def test_a_teacher_that_can_read_no_question_and_a_student_that_cannot_read_its_own_response_are_refused() -> None:
    questions = [Question(i, {"index": i}, (1, 2, 3), 0.5) for i in range(3)]
    deaf = Teacher("model/none", "model", TeacherContext("none"), Limit("teacher.max_model_len", 2))
    with pytest.raises(ConfigError, match=r"teacher.max_model_len=2: no question fits under model/none.* 8 or more"):
        lengths.too_long(questions, [deaf], LongPrompt(), 4, "solution")
    lengths.refuse_long_for_student(questions, Limit("max_model_len", 8), 4)
    lengths.refuse_long_for_student(questions, None, 4)
    with pytest.raises(ConfigError, match=r"max_model_len=7: 3 of 3 questions can need 8 tokens.*Set it to 8 or more"):
        lengths.refuse_long_for_student(questions, Limit("max_model_len", 7), 4)


def test_what_it_leaves_adds_up_and_the_page_shows_it(done: Any, tmp_path: Path) -> None:
    one, nodes = done
    folder = one.store.folder
    numbers = tables.write(one, nodes, lambda tokens: "<" + ",".join(map(str, tokens)) + ">")
    assert numbers["rollouts"] == {"free": 144, "forced": len(one.entries) - 144}
    assert numbers["nodes"]["chosen"] == 72
    assert numbers["nodes"]["scored"] + sum(numbers["nodes"]["dropped"].values()) == 72
    scores = pq.read_table(folder / tables.SCORES).to_pylist()
    teachers = {"model/none", "sharpen", "suppress", "shuffle"}
    assert {row["teacher"] for row in scores} == teachers
    assert {(row["support"], row["divergence"]) for row in scores} == {("kept", "reverse_kl")}
    tokens = pq.read_table(folder / tables.TOKENS).to_pylist()
    assert {row["node"] for row in tokens} == set(range(numbers["nodes"]["scored"]))
    assert all(row["k"] <= row["n"] for row in tokens)
    page = render(folder)
    for name in teachers:
        assert name in page
    assert "&lt;0" in page or "&lt;1" in page
    assert "6 questions: intervals over so few are rough" in page


def test_who_has_nothing_to_score_is_told(tmp_path: Path) -> None:
    one = measurement(tmp_path, rollouts=2, nodes=1)
    asyncio.run(one._free(lambda _: None))
    nodes = asyncio.run(one._choose())
    with pytest.raises(PacedError, match="too few visits"):
        tables.write(one, nodes, str)


@pytest.mark.parametrize(("always", "word"), [(True, "correct"), (False, "wrong")])
def test_a_verifier_that_always_says_the_same_is_told(always: bool, word: str, tmp_path: Path) -> None:
    one = measurement(tmp_path)
    one.student.judge = lambda row, tokens: ("", always)  # type: ignore[assignment]
    with pytest.raises(PacedError, match=f"All of 144 free responses were {word}"):
        asyncio.run(one.run(lambda _: None))
