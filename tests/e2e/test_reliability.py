"""A teacher that is wrong on long words, and a gate that leaves them out of both stages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.report.page import write_page
from paced_verl.report.run import Run
from scripts import tiny_models
from tests.e2e.harness import Workplace

SEEN = 4  # letters: the data has words of three to five
SAMPLES, STEPS = 2, 4


def test_a_gate_leaves_out_the_words_that_the_teacher_never_learned(models: Path, tmp_path: Path) -> None:
    """Its own pass rate is measured with the student's, when a prompt is about to be drawn, and of no other."""
    workplace = Workplace(tmp_path / "run", with_a_teacher_of_short_words(models, tmp_path / "models"))
    ended = workplace.launch(
        "paced.weight.teacher=gate",
        f"paced.pass_rate.teacher_samples={SAMPLES}",
        "paced.pass_rate.refresh=draw",
        "paced.weight.estimate=posterior",  # no weight is 0 for the student's sake
        steps=STEPS,
    )
    assert ended.code == 0, ended.tail()
    assert "teacher's own pass rate r: gate" in ended.log
    run = workplace.run()
    assert list(run.series("paced/stage").values()) == [1, 1, 2, 2]

    kept = workplace.checkpoints / f"global_step_{STEPS}" / "paced"
    student, teacher = (PassRateTable.load(kept / f"{who}pass_rates.parquet") for who in ("", "teacher_"))
    assert set(teacher.samples.tolist()) <= {0, SAMPLES}, "once a prompt"
    np.testing.assert_array_equal(teacher.samples > 0, student.samples > 0)

    words = [
        row["reward_model"]["ground_truth"]
        for row in pq.read_table(workplace.models / "data" / "train.parquet").to_pylist()
    ]
    long = np.array([len(word) > SEEN for word in words])
    judged = teacher.samples > 0
    assert teacher.rates()[judged & long].mean() < 0.1 < 0.7 < teacher.rates()[judged & ~long].mean()
    assert run.series("paced/teacher/pass_rate")[STEPS] == float(np.float32(teacher.rates()[judged].mean()))

    for step in range(1, STEPS + 1):
        trained = workplace.prompts_trained(step)
        assert (teacher.rates()[trained] >= 0.5).all(), f"step {step}"

    page = tmp_path / "report.html"
    write_page([Run.read(workplace.checkpoints)], page)
    assert "finished" in page.read_text()


def with_a_teacher_of_short_words(models: Path, folder: Path) -> Path:
    """The data and the student of ``models``, and a teacher that has seen no word of five letters."""
    for part in ("data", "student"):
        shutil.copytree(models / part, folder / part)
    preset = tiny_models.PRESETS["two_stage", "test"]
    assert preset.teacher is not None
    teacher = replace(preset.teacher, seen={"spell_backward": {"min_word_len": 3, "max_word_len": SEEN}})
    tiny_models.build(folder, replace(preset, teacher=teacher), seed=0, fresh=False)
    return folder
