"""Runs in a small world: what is said of a regime and of an arm is what happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paced_verl.pacing.kernel import Kernel
from scripts.experiments.evidence import world as worlds
from scripts.experiments.evidence.arms import ARMS, UNIFORM, Arm
from scripts.experiments.evidence.cells import EXPERIMENTS, SEEDS, by_world, programme, smoke
from scripts.experiments.evidence.distil import STAGES, Distillation
from scripts.experiments.evidence.model import Model, sample
from scripts.experiments.evidence.problems import mask, right
from scripts.experiments.evidence.regimes import REGIMES, SEEN
from scripts.experiments.evidence.runner import key, one, todo

R3 = REGIMES["R3 hopeless, right teacher"]
SMALL = replace(R3, prompts=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one seed's models: made once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    worlds.prepare("reverse", False, 0, folder)
    return folder


def test_models_are_read_as_they_were_made(models: Path) -> None:
    before = (models / "reverse-one-0.pt").stat().st_mtime_ns
    first, second = (worlds.prepare("reverse", False, 0, models) for _ in range(2))
    assert (models / "reverse-one-0.pt").stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True))


@pytest.mark.parametrize(
    ("regime", "right_share"), [("R2 hopeless, wrong teacher", 0.5), ("R3 hopeless, right teacher", 1)]
)
def test_a_regime_is_what_it_says(regime: str, right_share: float, models: Path) -> None:
    """Measured anew: shares of the classes, and where the teacher is right in responses and in probabilities."""
    world = worlds.build(REGIMES[regime], "reverse", 0, models)
    assert world.kind.bincount().tolist() == [256, 205, 51]
    generator = torch.Generator().manual_seed(5)
    rate = worlds.measured("reverse", world.models.student, world.train, 64, generator)
    assert rate[world.kind == 0].mean() < 0.03
    assert 0.15 < rate[world.kind == 1].mean() < 0.85
    assert rate[world.kind == 2].mean() > 0.85
    run = Distillation(world, ARMS["uniform"], "forward", 1, 0)
    everything = torch.arange(len(world.train))
    answers = run._sampled_by_teachers(everything)
    assert right("reverse", answers, world.train.solutions).float().mean() == pytest.approx(right_share, abs=0.03)
    greedy = run._teacher_logits(everything, world.train.prompts, world.train.solutions).argmax(-1)
    agrees = ((greedy == world.train.solutions) | (mask(world.train.solutions) == 0)).all(1)
    assert agrees.float().mean() == pytest.approx(right_share, abs=0.03)
    assert not torch.isin(world.train.lengths[world.wrong_teacher], torch.tensor(SEEN)).any()


def test_an_arm_weighs_as_the_products_kernel_does(models: Path) -> None:
    world = worlds.build(SMALL, "reverse", 0, models)
    run = Distillation(world, ARMS["weights"], "forward", 4, 0)
    run._bring_up_to_date(1)
    table = run.rates.table
    raw = Kernel()(table.successes, table.samples)
    drawn = run.rates.sampler.draw(32)
    np.testing.assert_allclose(run.rates.sampler.loss_weights(drawn), raw[drawn] / raw[raw > 0].mean(), rtol=1e-5)


def test_a_placebo_has_the_weights_of_other_prompts(models: Path) -> None:
    world = worlds.build(SMALL, "reverse", 0, models)
    true, shuffled = (
        Distillation(world, Arm(ARMS["weights"].block, shuffled=flag), "forward", 4, 0) for flag in (False, True)
    )
    for run in (true, shuffled):
        run._bring_up_to_date(1)
    rates = true.rates.table.rates(), shuffled.rates.table.rates()
    assert np.corrcoef(*rates)[0, 1] < 0.5
    assert shuffled.shuffle is not None
    assert np.corrcoef(rates[0][shuffled.shuffle], rates[1])[0, 1] > 0.8, "the same prompts' rates, elsewhere"


def test_what_is_spent_is_counted(models: Path) -> None:
    world = worlds.build(SMALL, "reverse", 0, models)
    curve = Distillation(world, ARMS["weights"], "two stages", 4, 0).run([0, 2, 4])
    assert curve["rows"][0] == curve["student"][0] == curve["teacher"][0] == 0
    assert curve["estimate"][0] >= 64 * 8 * (9 + 2), "a prompt has nine tokens"
    assert curve["estimate"][2] > 1.8 * curve["estimate"][0] or curve["estimate"][2] == curve["estimate"][0]
    assert curve["student"][1] == 0 < curve["student"][2], "no rollouts on teacher responses"
    assert curve["rows"][2] <= 4 * 32
    uniform = Distillation(world, ARMS["uniform"], "forward", 4, 0).run([0, 4])
    assert (uniform["rows"][-1], uniform["estimate"][-1]) == (4 * 32, 0)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_runs_in_every_kind_of_stage(name: str, models: Path) -> None:
    world = worlds.build(SMALL, "reverse", 0, models)
    for stages in STAGES:
        curve = Distillation(world, ARMS[name], stages, 2, 0).run([0, 2])
        assert 0 <= curve["accuracy"][-1] <= 1


def test_the_same_seed_gives_the_same_run_and_the_student_before_it_is_not_touched(models: Path) -> None:
    world = worlds.build(SMALL, "reverse", 0, models)
    before = [each.clone() for each in world.models.student.parameters()]
    first, second = (Distillation(world, ARMS["sampler"], "forward", 3, 1).run([0, 3]) for _ in range(2))
    for run in (first, second):
        del run["seconds"]
    assert json.dumps(first) == json.dumps(second), "of which some numbers are NaN"
    assert all(torch.equal(a, b) for a, b in zip(before, world.models.student.parameters(), strict=True))


def test_uniform_steps_learn_as_plain_forward_kl_does(models: Path) -> None:
    """One step of the run, and the same step written out."""
    world = worlds.build(SMALL, "reverse", 0, models)
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


def test_what_has_a_row_is_not_run_again(models: Path, tmp_path: Path) -> None:
    cells = [cell for cell in smoke() if cell.seed == 0 and cell.arm != "uniform"]
    world = worlds.build(cells[0].world(), "reverse", 0, models)
    row = json.loads(one(cells[0], world, tmp_path).read_text())
    assert (row["arm"], row["seed"], row["step"][-1]) == (cells[0].arm, 0, cells[0].steps)
    assert todo(cells, tmp_path) == cells[1:]
