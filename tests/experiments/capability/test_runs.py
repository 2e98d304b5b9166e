"""Runs that share tokens: what is planned is what is trained, and every policy meets the same world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scripts.experiments.capability import runner, world
from scripts.experiments.capability.__main__ import app
from scripts.experiments.capability.distil import BATCH, DECISIONS, EVERY, FEW, MOST_TOKENS, TOKENS, Distillation, Plan
from scripts.experiments.capability.problems import ASKED, NAMES, REQUIREMENT, make
from scripts.experiments.capability.programme import CALIBRATION, PHASES, SEEDS, Cell, programme, smoke
from scripts.experiments.capability.reading import Reading
from scripts.experiments.capability.world import World, keys
from scripts.experiments.evidence.problems import BLANK, END, PROMPT, mask, right


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose models have hardly learned."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    for name, value in (("TRAINING", 96), ("HELD_OUT", 64), ("STUDENT_STEPS", 2), ("TEACHER_STEPS", 4)):
        patch.setattr(world, name, value)
    patch.setattr("scripts.experiments.capability.distil.HELD_OUT", 64)
    yield world.build(0, tmp_path_factory.mktemp("models"))
    patch.undo()


SOLVED = {
    "copy": [3, 1, 4, 1],
    "reverse": [1, 4, 1, 3],
    "shift": [4, 2, 5, 2],
    "sort": [1, 1, 3, 4],
    "peak": [3, 3, 4, 4],
    "deep": [(3 * 1 + 4) % 10, (1 * 4 + 1) % 10, (4 * 1 + 3) % 10, (1 * 3 + 1) % 10],
}


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_those_done_by_hand(name: str) -> None:
    from scripts.experiments.capability.problems import solve

    symbols, lengths = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]), torch.tensor([4])
    assert solve(name, symbols, lengths)[0].tolist() == [*SOLVED[name], *[BLANK] * 4]


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_says_what_is_asked(name: str) -> None:
    problems = make(name, 50, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in problems.prompts[:, -2:].tolist()} == {ASKED[name]}
    assert len(set(ASKED.values())) == len(NAMES)
    assert (problems.prompts[:, : PROMPT - 2] < 10).sum(1).tolist() == problems.lengths.tolist()
    assert right(name, problems.solutions, problems.solutions).all()
    assert mask(problems.solutions).sum(1).max() <= MOST_TOKENS
    assert (problems.solutions == END).sum(1).eq(1).all()


def test_no_problem_that_judges_is_trained_or_probes(small: World) -> None:
    train = set(keys(small.train))
    assert len(train) == len(small.train)
    assert not any(train & set(keys(part)) for part in small.held_out.values())
    split = small.capabilities(10, 0)
    assert all(len(rows) == 10 for rows in split.probes)
    assert (split.groups == -1).sum() == 10 * len(NAMES)


def test_tokens_are_shared_as_planned_and_end_with_the_budget(small: World) -> None:
    mix = dict(zip(NAMES, (0.5, 0.3, 0.1, 0.1, 0.0, 0.0), strict=True))
    run = Distillation(small, Plan("fixed", mix, decisions=2, floor=0.0), 0)
    found = run.run()
    budget = round(2 * EVERY * BATCH * TOKENS)
    assert budget - BATCH * MOST_TOKENS < sum(found["tokens"]) <= budget
    assert np.array(found["tokens"]) / sum(found["tokens"]) == pytest.approx(list(mix.values()), abs=0.02)
    assert found["planned"][0] == pytest.approx(list(mix.values()))
    assert len(found["accuracy"][0]) == len(found["final"]) == len(found["before"]) == len(NAMES)


def test_policies_meet_the_same_world_and_a_run_can_be_repeated(small: World) -> None:
    one, again, other = (
        Distillation(small, Plan(policy, decisions=1), 0).run() for policy in ("gains", "gains", "read")
    )
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}
    assert one["before"] == other["before"]
    assert one["planned"][0] == pytest.approx([REQUIREMENT[name] for name in NAMES]), "gains begins at r"
    assert one["planned"][0] != other["planned"][0]


def test_looking_at_errors_changes_no_run(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at are decisions without answers: of four, and once more at the end, that is the third alone."""
    plan = Plan("gains", decisions=4, probe={"prompts": 6, "samples": 2, "score": "divergence"})  # type: ignore[dict-item]
    monkeypatch.setattr(World, "taught", property(lambda self: self.train.solutions), raising=False)
    looked = Reading(small, plan, 0).run()
    errors = looked.pop("score_errors")
    assert np.shape(errors["read"]) == np.shape(errors["answered"]) == (1, len(NAMES))
    monkeypatch.setattr(Reading, "_accuracy", lambda self, samples: np.zeros(len(NAMES)))
    blind = Reading(small, plan, 0).run()
    del blind["score_errors"]
    assert {k: v for k, v in looked.items() if k != "seconds"} == {k: v for k, v in blind.items() if k != "seconds"}


def test_what_is_read_is_the_mean_of_its_tokens_alone(small: World) -> None:
    run = Reading(small, Plan("gains", decisions=1), 0)
    which = np.array([3, 200])
    found = run.likelihood(which, [[1, 2, END], [4, END]])
    for prompt, response, value in zip(which.tolist(), ([1, 2, END], [4, END]), found.tolist(), strict=True):
        with torch.no_grad():
            tokens = torch.cat([small.train.prompts[prompt], torch.tensor(response)])[None]
            said = run.student(tokens)[0].log_softmax(-1)[0, PROMPT - 1 : -1]
        assert value == pytest.approx(said[range(len(response)), response].mean().item(), abs=1e-5)


def test_probes_are_as_many_as_the_product_accepts() -> None:
    from paced_verl.checks.capability import MOST_PROBES

    asked = len(NAMES) * FEW["prompts"] * FEW["samples"]
    assert asked <= MOST_PROBES * EVERY * BATCH < asked + len(NAMES) * FEW["samples"]


def test_what_is_reported_is_not_what_was_chosen_on() -> None:
    assert not set(CALIBRATION) & set(SEEDS)
    cells = programme()
    assert len(set(cells)) == len(cells)
    seeds = {phase: {cell.seed for cell in programme([phase])} for phase in PHASES}
    assert seeds["interventions"] | seeds["calibration"] == set(CALIBRATION)
    assert seeds["policies"] == set(SEEDS)
    assert all(cell.decisions == DECISIONS for cell in programme(["policies"]))


def test_runs_that_are_done_are_not_run_again(small: World, tmp_path: Path) -> None:
    cells = smoke()
    row = runner.one(cells[0], small, tmp_path)
    assert runner.todo(cells, tmp_path) == cells[1:]
    table = tmp_path / "table.parquet"
    runner.keep(tmp_path, table)
    runner.restore([row, row | {"arm": "read", "code": "another"}], tmp_path / "new")
    assert runner.todo(cells, tmp_path / "new") == cells[1:], "rows of other code are none"
    assert json.loads(next((tmp_path / "new" / "rows").iterdir()).read_text()) == row
    assert Cell(row["phase"], row["arm"], row["seed"], row["decisions"]) == cells[0]


def test_the_smoke_run_leaves_a_row_a_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--smoke", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert not runner.todo(smoke(), tmp_path)
