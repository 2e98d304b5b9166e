"""Runs in a small world: what is said of a regime and of an arm is what happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from paced_verl.pacing.kernel import Kernel
from scripts.experiments.evidence import predicted
from scripts.experiments.evidence import world as worlds
from scripts.experiments.evidence.arms import ARMS, UNIFORM, Arm
from scripts.experiments.evidence.cells import EXPERIMENTS, SEEDS, by_world, programme, smoke
from scripts.experiments.evidence.distil import STAGES, Distillation
from scripts.experiments.evidence.model import Model, pretrain, sample
from scripts.experiments.evidence.problems import draw_lengths, make, mask, right
from scripts.experiments.evidence.runner import compared, fingerprint, keep, key, one, restore, todo
from scripts.experiments.evidence.world import Models, World


@pytest.fixture(scope="module")
def world() -> World:
    """Short words, a student that knows some of them, and two teachers, of which one has learned nothing."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    models = Models(Model(worlds.STUDENT), Model(worlds.TEACHER), Model(worlds.TEACHER))
    words = make("reverse", draw_lengths(4000, (1, 2, 3), generator), generator)
    for model, wanted in ((models.student, 0.5), (models.right, 0.9)):

        def enough(_: float, model: Model = model, wanted: float = wanted) -> bool:
            return worlds.measured("reverse", model, words[:200], 1, generator).mean().item() >= wanted

        pretrain(model, words, generator, enough, steps=300)
    train = make("reverse", draw_lengths(64, (1, 2, 3), generator), generator)
    wrong = torch.arange(64) < 16
    return World("reverse", models, train, wrong, torch.ones(64, dtype=torch.int64), words[-100:], words[:50])


def test_an_arm_weighs_as_the_products_kernel_does(world: World) -> None:
    run = Distillation(world, ARMS["weights"], "forward", 4, 0)
    run._bring_up_to_date(1)
    table = run.rates.table
    raw = Kernel()(table.successes, table.samples)
    drawn = run.rates.sampler.draw(32)
    np.testing.assert_allclose(run.rates.sampler.loss_weights(drawn), raw[drawn] / raw[raw > 0].mean(), rtol=1e-5)


def test_a_placebo_has_the_weights_of_other_prompts(world: World) -> None:
    true, shuffled = (
        Distillation(world, Arm(ARMS["weights"].block, shuffled=flag), "forward", 4, 0) for flag in (False, True)
    )
    for run in (true, shuffled):
        run._bring_up_to_date(1)
    rates = true.rates.table.rates(), shuffled.rates.table.rates()
    assert np.corrcoef(*rates)[0, 1] < 0.5
    assert shuffled.shuffle is not None
    assert np.corrcoef(rates[0][shuffled.shuffle], rates[1])[0, 1] > 0.6, "the same prompts' rates, elsewhere"


def test_predicted_pass_rates_are_nearer_to_the_truth_than_the_samples_they_are_made_of(world: World) -> None:
    run = Distillation(world, ARMS["predicted"], "forward", 4, 0)
    run._bring_up_to_date(1)
    table = run.rates.table
    truth = worlds.measured("reverse", world.models.student, world.train, 256, torch.Generator().manual_seed(1)).numpy()
    few = worlds.measured("reverse", world.models.student, world.train, 2, torch.Generator().manual_seed(2)).numpy()
    assert np.mean((table.rates() - truth) ** 2) < 0.5 * np.mean((few - truth) ** 2)
    assert np.ptp(table.samples) == 0, "so that p(1 − p) of the table is the posterior's, but for one factor"


def test_a_prediction_sees_the_likelihood_of_the_stored_response(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def counts(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.extend(columns[:-2])
        return np.ones(64), np.full(64, 2.0)

    monkeypatch.setattr(predicted, "counts", counts)
    run = Distillation(world, ARMS["predicted"], "forward", 4, 0)
    run.predict(np.arange(64), 2)
    lengths, tokens, right_ones, likelihood, k = seen
    assert lengths.tolist() == world.train.lengths.tolist()
    assert set(np.unique(k)) <= {0, 1, 2}
    for i in range(5):
        response = run.responses[i]
        whole = torch.cat([world.train.prompts[i], response])[None]
        with torch.no_grad():
            chances = world.models.student(whole)[0][0].log_softmax(-1)
        ends = int(mask(response[None]).sum())
        by_token = [chances[8 + j, response[j]].item() for j in range(ends)]
        assert tokens[i] == ends
        assert likelihood[i] == pytest.approx(sum(by_token), rel=1e-4, abs=1e-4)
        assert right_ones[i] == right("reverse", response[None], world.train.solutions[i : i + 1]).item()
    samples = 2 * 64 * 9, 2 * 64 * (9 + 9)
    read = 64 * 9 + tokens.sum()
    assert samples[0] < run.spent.estimate - read < samples[1], "the student's samples, and its pass over the responses"


def test_what_is_spent_is_counted(world: World) -> None:
    curve = Distillation(world, ARMS["weights"], "two stages", 4, 0).run([0, 2, 4])
    assert curve["rows"][0] == curve["student"][0] == curve["teacher"][0] == 0
    assert curve["estimate"][0] >= 64 * 8 * (9 + 2), "a prompt has nine tokens"
    assert curve["estimate"][2] > 1.8 * curve["estimate"][0] or curve["estimate"][2] == curve["estimate"][0]
    assert curve["student"][1] == 0 < curve["student"][2], "no rollouts on teacher responses"
    assert curve["rows"][2] <= 4 * 32
    uniform = Distillation(world, ARMS["uniform"], "forward", 4, 0).run([0, 4])
    assert (uniform["rows"][-1], uniform["estimate"][-1]) == (4 * 32, 0)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_runs_in_every_kind_of_stage(name: str, world: World) -> None:
    for stages in STAGES:
        curve = Distillation(world, ARMS[name], stages, 2, 0).run([0, 2])
        assert 0 <= curve["accuracy"][-1] <= 1


def test_the_same_seed_gives_the_same_run_and_the_student_before_it_is_not_touched(world: World) -> None:
    before = [each.clone() for each in world.models.student.parameters()]
    first, second = (Distillation(world, ARMS["sampler"], "forward", 3, 1).run([0, 3]) for _ in range(2))
    for run in (first, second):
        del run["seconds"]
    assert json.dumps(first) == json.dumps(second), "of which some numbers are NaN"
    assert all(torch.equal(a, b) for a, b in zip(before, world.models.student.parameters(), strict=True))


def test_uniform_steps_learn_as_plain_forward_kl_does(world: World) -> None:
    """One step of the run, and the same step written out."""
    world = replace(world, wrong_teacher=torch.zeros(64, dtype=torch.bool))
    run = Distillation(world, Arm(UNIFORM), "forward", 1, 0)
    run.run([0, 1])
    again = Distillation(world, Arm(UNIFORM), "forward", 1, 0)
    drawn = torch.from_numpy(again.rates.sampler.draw(32))
    responses = torch.stack([run.responses[prompt] for prompt in drawn.tolist()])
    student = worlds.fresh(world.models.student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    teacher = world.models.right.response_logits(world.train.prompts[drawn], responses).detach().log_softmax(-1)
    ours = student.response_logits(world.train.prompts[drawn], responses).log_softmax(-1)
    kl = (teacher.exp() * (teacher - ours)).sum(-1) * mask(responses)
    (kl.sum(1) / mask(responses).sum(1)).mean().backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    for a, b in zip(student.parameters(), run.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_samples_with_a_cache_are_those_without() -> None:
    torch.manual_seed(0)
    model = Model(32)
    prompts = torch.randint(15, (8, 9))
    greedy = sample(model, prompts)
    tokens = prompts
    for _ in range(greedy.shape[1]):
        logits, _ = model(tokens)
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(tokens[:, 9:], greedy)


def test_arms_are_measured_at_the_same_points_and_some_go_on() -> None:
    cells = {cell.arm: cell for cell in programme(["E1"]) if cell.seed == SEEDS[0] and cell.regime.startswith("R0")}
    assert cells["uniform"].length == 4 * cells["sampler"].length
    shared = [point for point in cells["uniform"].points() if point <= cells["sampler"].length]
    assert shared == cells["sampler"].points()
    assert all(len({cell.where for cell in group}) == 1 for group in by_world(list(cells.values())))


def test_cells_have_files_of_their_own_and_fresh_seeds() -> None:
    cells = programme()
    assert len({key(cell.columns()) for cell in cells}) == len(cells)
    assert {cell.seed for cell in cells if cell.experiment != "E0"} == set(SEEDS)
    assert {cell.experiment for cell in cells} == set(EXPERIMENTS)
    for cell in cells[:: len(cells) // 200]:
        assert 0.99 < sum((cell.world().hopeless, cell.world().frontier, cell.world().mastered)) < 1.01
        cell.treatment()


def test_accuracy_in_one_pass_is_that_of_greedy_responses(world: World) -> None:
    for model in (world.models.student, world.models.wrong):
        answers = sample(model, world.held_out.prompts)
        expected = right("reverse", answers, world.held_out.solutions).float().mean().item()
        assert worlds.accuracy("reverse", model, world.held_out) == pytest.approx(expected)
    assert 0 < worlds.accuracy("reverse", world.models.student, world.held_out) < 1


def test_what_has_a_row_is_not_run_again_and_tables_give_rows_back(world: World, tmp_path: Path) -> None:
    cells = [cell for cell in smoke() if cell.experiment in ("E1", "E2")]
    for cell in cells[:2]:
        one(cell, world, tmp_path / "first")
    assert todo(cells, tmp_path / "first") == cells[2:]
    row = json.loads((tmp_path / "first" / "rows" / f"{key(cells[0].columns())}.json").read_text())
    assert (row["arm"], row["seed"], row["code"]) == (cells[0].arm, cells[0].seed, fingerprint())
    keep(tmp_path / "first", tmp_path / "tables", cells)
    rows = [row for file in (tmp_path / "tables").glob("*.parquet") for row in pl.read_parquet(file).to_dicts()]
    restore(rows, tmp_path / "second")
    assert todo(cells, tmp_path / "second") == cells[2:]
    restore([row | {"code": "another"} for row in rows], tmp_path / "third")
    assert todo(cells, tmp_path / "third") == cells
    keep(tmp_path / "second", tmp_path / "again", cells)
    for file in (tmp_path / "tables").iterdir():
        assert pl.read_parquet(file).equals(pl.read_parquet(tmp_path / "again" / file.name))
    assert compared(rows, cells) == (2, 0)
    assert compared([*rows, rows[0]], cells[1:]) == (2, 2), "one that is not asked for, and it is there twice"
    keep(tmp_path / "first", tmp_path / "fewer", cells[:1])
    kept = [row for file in (tmp_path / "fewer").glob("*.parquet") for row in pl.read_parquet(file).to_dicts()]
    assert compared(kept, cells[:1]) == (0, 0)
