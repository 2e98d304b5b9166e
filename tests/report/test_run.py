"""Reading what a run has left: attempts, kills, moved files, and where the run stands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paced_verl.errors import PacedError
from paced_verl.report.metrics import read_metrics
from paced_verl.report.run import Run, default_page, read_all, status
from paced_verl.report.summary import pass_rate_change
from paced_verl.run.record import record_end
from tests.report.runs import Workshop, age


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def lines(*entries: tuple[int, dict[str, object]]) -> str:
    return "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in entries)


def test_a_last_line_without_its_end_is_not_counted_and_a_broken_one_is_said(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        lines((1, {"a": 1}))
        + '{"step": 2, "da\n{"step": 2, "data": [1]}\n'
        + lines((3, {"a": 3.5}))
        + '{"step": 4, "data": {"a": 4}}'
    )
    steps, warnings = read_metrics(file)
    assert steps == {1: {"a": 1.0}, 3: {"a": 3.5}}
    assert len(warnings) == 3
    assert all(part in words for part, words in zip(("line 2", "line 3", "no end"), warnings, strict=True))


def test_what_is_no_number_is_left_out_and_two_entries_of_a_step_are_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines((1, {"a": 1, "nan": None, "word": "x", "flag": True}), (1, {"b": 2})))
    assert read_metrics(file) == ({1: {"a": 1.0, "b": 2.0}}, [])


def test_a_step_that_was_trained_twice_counts_as_the_last_attempt_had_it(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    (folder / "metrics-0.jsonl").write_text(lines(*((step, {"x": step, "old": 1}) for step in range(1, 13))))
    workshop.begin("run", 20, after=8, metrics="metrics-1.jsonl")
    (folder / "metrics-1.jsonl").write_text(lines(*((step, {"x": -step}) for step in (9, 10))))
    run = Run.read(folder)
    assert run.series("x") == {**{step: step for step in range(1, 9)}, 9: -9, 10: -10}, (
        "11 and 12 were lost with the kill"
    )
    assert set(run.series("old")) == set(range(1, 9))
    assert (run.step, run.total, run.warnings) == (10, 20, [])


def test_tables_and_checkpoints_behind_the_last_step_are_of_an_attempt_that_is_gone(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    workshop.train(folder, range(11), 20)
    for done in (0, 10, 15):
        workshop.estimate(folder, done, workshop.table(0))
        workshop.checkpoint(folder, done, workshop.table(0))
    run = Run.read(folder)
    assert list(run.pass_rates) == [0, 10]
    assert list(run.folders) == [0, 10]


def test_a_folder_that_is_no_checkpoint_of_a_step_is_left_alone(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    workshop.train(folder, range(11), 20)
    kept = workshop.checkpoint(folder, 10, workshop.table(0))
    for name in ("global_step_10_best", "global_step_10.bak"):
        shutil.copytree(kept.parent, folder / name)
    assert Run.read(folder).folders == {10: kept}


def test_tables_of_what_was_drawn_are_no_estimates_of_all_prompts(workshop: Workshop) -> None:
    """With refresh: draw a checkpoint leaves its table where estimates are."""
    folder = workshop.begin("run", 20, paced__pass_rate__refresh="draw")
    workshop.train(folder, range(21), 20)
    for done in (10, 20):
        workshop.estimate(folder, done, workshop.table(0, unseen=0.5))
    run = Run.read(folder)
    tables, whole = run.tables()
    assert (list(tables), whole) == ([10, 20], False)
    assert pass_rate_change(run) is None
    workshop.begin("run", 20)
    assert Run.read(folder).tables()[1]


def test_attempts_whose_environment_names_one_file_lose_nothing(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    workshop.train(folder, range(9), 20)
    workshop.begin("run", 20, after=8)
    workshop.train(folder, range(9, 12), 20)
    run = Run.read(folder)
    assert list(run.metrics) == list(range(12))
    assert run.warnings == []


def test_a_run_that_was_copied_is_read_where_it_is(workshop: Workshop) -> None:
    folder = workshop.whole()
    moved = workshop.folder / "elsewhere" / "copy"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    assert Run.read(moved).step == 40
    (moved / "metrics-0.jsonl").unlink()
    gone = Run.read(moved)
    assert gone.metrics == {}
    assert "not at" in gone.warnings[0]


def test_a_run_stands_where_its_record_and_its_files_say(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    assert status(Run.read(folder)).state == "running", "no step yet"
    workshop.train(folder, range(11), 20)
    assert status(Run.read(folder)).state == "running"
    age(folder, 3700)
    assert status(Run.read(folder)).state == "silent", "a step takes 20 s"
    record_end(folder / "paced", "Teacher vLLM server died")
    found = status(Run.read(folder))
    assert (found.state, found.cause) == ("aborted", "Teacher vLLM server died")
    workshop.begin("run", 20, after=10, metrics="metrics-1.jsonl")
    workshop.train(folder, range(11, 15), 20, metrics="metrics-1.jsonl")
    assert status(Run.read(folder)).state == "running", "resumed"
    record_end(folder / "paced")
    assert status(Run.read(folder)).state == "finished"


def test_a_run_of_slow_steps_is_silent_only_after_ten_of_them(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    (folder / "metrics-0.jsonl").write_text(lines((1, {"timing_s/step": 1000}), (2, {"timing_s/step": 1000})))
    run = Run.read(folder)
    assert run.seen is not None
    assert status(run, run.seen + 9_900).state == "running"
    assert status(run, run.seen + 10_100).state == "silent"


def test_a_run_of_verls_own_trainers_is_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "grpo.jsonl").write_text(lines((1, {"critic/score/mean": 0.5})))
    for path in (tmp_path / "grpo.jsonl", tmp_path):
        run = Run.read(path)
        assert run.series("critic/score/mean") == {1: 0.5}
        assert "no paced/run.json" in run.warnings[0]
        assert status(run).state == "unknown"


def test_what_is_no_run_is_a_mistake_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(PacedError, match=r"expected the trainer\.default_local_dir"):
        Run.read(tmp_path)
    with pytest.raises(PacedError, match="expected"):
        Run.read(tmp_path / "none")
    (tmp_path / "paced").mkdir()
    (tmp_path / "paced" / "run.json").write_text("{")
    with pytest.raises(PacedError, match="cannot be read"):
        Run.read(tmp_path)
    (tmp_path / "notes.txt").write_text("dear diary\n")
    with pytest.raises(PacedError, match="expected metrics"):
        Run.read(tmp_path / "notes.txt")


def test_runs_of_one_name_are_told_apart(workshop: Workshop) -> None:
    folder = workshop.whole(total=10)
    copy = shutil.copytree(folder, workshop.folder / "copy")
    assert len({run.name for run in read_all([folder, copy])}) == 2
    assert read_all([folder])[0].name == "paced-run"


def test_a_page_goes_where_the_run_keeps_its_own(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    assert default_page(folder) == folder / "paced" / "report.html"
    workshop.train(folder, [1], 20)
    assert default_page(folder / "metrics-0.jsonl") == folder / "metrics-0.html"
    assert default_page(workshop.folder) == workshop.folder / "report.html"
