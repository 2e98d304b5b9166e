"""``paced.capability`` as strangers write it: one sentence before Ray, with the key, or none at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paced_verl.checks import check
from paced_verl.cli import app
from paced_verl.config import ConfigError
from paced_verl.launch.plan import Plan
from tests.checks.test_checks import ROWS, config_of, overrides_of, write_data, write_model

SOURCES = ["maths", "code", "words"] * (ROWS // 3)
RIGHT = {"column": "skill", "every_steps": "8", "probe": "{prompts: 2, samples: 2}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capability")
    extra = [{"index": i, "solution": "two", "level": i % 2} for i in range(ROWS)]
    write_data(folder / "train.parquet", skill=SOURCES, extra_info=extra)
    for name in ("student", "teacher"):
        write_model(folder / name, ["problem", "two", "and"])
    return folder


def refused(folder: Path, *overrides: str, **block: str) -> str:
    written = ", ".join(f"{key}: {value}" for key, value in (RIGHT | block).items())
    with pytest.raises(ConfigError) as error:
        check(config_of(folder, f"paced.capability={{{written}}}", *overrides))
    return str(error.value)


def test_what_is_right_passes(folder: Path) -> None:
    for block in ("{column: skill, every_steps: 8, probe: {prompts: 2, samples: 2}}", "{policy: uniform, probe: null}"):
        paced, _ = check(config_of(folder, f"paced.capability={block}"))
        assert paced.capability is not None
    nested = (
        "{column: extra_info.level, match: {easy: [0], hard: [1]}, every_steps: 8, probe: {prompts: 2, samples: 2}}"
    )
    check(config_of(folder, f"paced.capability={nested}"))
    levels = "{column: skill, curriculum: {column: extra_info.level}, every_steps: 8, probe: {prompts: 2, samples: 2}}"
    check(config_of(folder, f"paced.capability={levels}"))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"requirement": "{maths: 0.5, cod: 0.5}"}, "no capability 'cod'. Did you mean 'code'"),
        ({"requirement": "{maths: 0.5, code: 0.3}"}, "requirement must add up to 1, but adds up to 0.8"),
        ({"policy": "gain"}, "gain"),
        ({"policy": "fixed"}, "policy: fixed needs mix"),
        ({"mix": "{maths: 1.0}"}, "mix goes with policy: fixed"),
        ({"policy": "fixed", "mix": "{music: 1.0}"}, "no capability 'music'"),
        ({"column": "subject"}, "the column subject has 0 values"),
        ({"match": "{maths: [maths], other: [code]}"}, "4 of 12 training prompts match no capability"),
        ({"match": "{a: [maths, code], b: [words, code]}"}, "both match 'code'"),
        ({"probe": "{prompts: 4, samples: 1}"}, "has 4 training prompts, and one at least must be left"),
        ({"floor": "0.4"}, "3 capabilities with so much each would have 1.2 of the tokens in all. Lower it to 0.33"),
        ({"probe": "{prompts: 2, score: likelihood}"}, "paced.capability.probe.score"),
        ({"budget": "1000"}, "8 steps of 8 rows, one decision, may train on 2048 tokens"),
        ({"probe": "null"}, "policy: gains decides by what probes say"),
        ({"curriculum": "{column: grade}"}, "12 of 12 training prompts have no level in the column grade"),
        ({"curriculum": "{column: skill, by: tertiles}"}, "which of them is harder?"),
        ({"curriculum": "{column: extra_info.level, order: [0, 2]}"}, "the column extra_info.level has '1', too"),
        ({"curriculum": "{column: extra_info.level, by: harder}"}, "paced.capability.curriculum.by"),
        (
            {"curriculum": "{column: extra_info.level}", "policy": "uniform", "probe": "null"},
            "curriculum.by: frontier follows what probes say",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(folder: Path, block: dict[str, str], words: str) -> None:
    message = refused(folder, **block)
    assert message.startswith("paced")
    assert words in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("paced.pass_rate.refresh=draw",), "set refresh: start, stage or every"),
        (
            ("paced.weight.source=group", "paced.weight.estimate=posterior", "paced.weight.prior=[1,1]"),
            "each capability has its own",
        ),
    ],
)
def test_settings_that_do_not_go_with_it_are_named(folder: Path, overrides: tuple[str, ...], words: str) -> None:
    assert words in refused(folder, *overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("paced.teacher.backend=reference", "paced.teacher.backend=reference scores but does not write. Set score"),
        ("paced.teacher.context=rollout", " asks the teacher before the student has responded"),
    ],
)
def test_a_teacher_that_cannot_answer_probes_is_named(folder: Path, override: str, words: str) -> None:
    message = refused(folder, override, every_steps="8", probe="{prompts: 2, samples: 2, score: divergence}")
    assert "paced.capability.probe.score=divergence" in message
    assert words in message


@pytest.mark.parametrize(
    ("every", "probe", "words"),
    [
        # 5 steps of 4 rows and 5 of 8: 60. Before steps 1 and 9, and after the last.
        (8, "{prompts: 2, samples: 1}", "before 2 decision(s) and after the last, are 18 responses, beside 60 that"),
        (10, "{prompts: 2, samples: 2}", "before 1 decision(s) and after the last, are 24 responses, beside 60"),
        # Each is read 4 times, answered at the first two, not at the third and at the end, and written once.
        (4, "{prompts: 2, samples: 2, score: divergence, sample_every: 5}", "are 66 responses, beside 60"),
    ],
)
def test_probes_that_cost_more_than_a_quarter_of_the_run_are_refused(
    folder: Path, every: int, probe: str, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Plan.of(config_of(folder, f"paced.capability={{column: skill, every_steps: {every}, probe: {probe}}}"))
    assert str(error.value).startswith("paced.capability.probe: 3 capabilities × 2 prompts × ")
    assert words in str(error.value)


def test_probes_may_cost_a_quarter(folder: Path) -> None:
    block = "paced.capability={column: skill, every_steps: 10, probe: {prompts: 2, samples: 1}}"
    assert "12 responses for 3 capabilities in the run, beside 60" in str(Plan.of(config_of(folder, block)))


def test_groups_that_are_dropped_after_they_were_drawn_are_refused(folder: Path) -> None:
    message = refused(
        folder,
        "distillation.distillation_loss.use_task_rewards=True",
        "+algorithm.filter_groups={enable: True, metric: acc, max_num_gen_batches: 4}",
    )
    assert "algorithm.filter_groups.enable=True drops groups after they were drawn" in message


def test_a_budget_counts_whole_steps(folder: Path) -> None:
    message = refused(folder, "trainer.v1.trainer_mode=paced_colocate_async", budget="100000")
    assert "Use paced_sync, or no budget" in message


def test_the_plan_says_who_decides_and_what_that_costs(folder: Path) -> None:
    block = "{column: skill, every_steps: 16, probe: {prompts: 2, samples: 2}, curriculum: {column: extra_info.level}}"
    text = str(Plan.of(config_of(folder, f"paced.capability={block}", "trainer.total_training_steps=40")))
    assert "capabilities: by skill, gains decides every 16 steps, 3 decision(s) in the run" in text
    # 3 capabilities × 2 × 2, before steps 1, 17 and 33, and after the last.
    assert "probes: 2 prompts × 2 samples of each capability a decision and after the last; 48 responses for 3" in text
    assert "`paced-verl capability headroom` says" in text
    assert "curriculum: levels of extra_info.level, by frontier" in text
    assert "budget:" not in text
    block = "{column: skill, policy: uniform, probe: null, every_steps: 2, budget: 100000}"
    text = str(Plan.of(config_of(folder, f"paced.capability={block}")))
    assert "uniform decides every 2 steps, 5 decision(s)" in text
    assert "probes: none" in text
    assert "budget: 100,000 tokens of responses" in text
    assert "headroom" not in text
    assert "capabilities:" not in str(Plan.of(config_of(folder)))


def test_the_command_shows_what_each_capability_has(folder: Path) -> None:
    block = "{column: skill, every_steps: 10, probe: {prompts: 2, samples: 1}, requirement: {maths: 0.7, code: 0.3}}"
    shown = CliRunner().invoke(app, ["capability", "plan", *overrides_of(folder, f"paced.capability={block}")])
    assert shown.exit_code == 0, shown.output
    assert "gains decides every 10 steps" in shown.stdout
    for name, share in (("maths", 70), ("code", 30), ("words", 0)):
        assert re.search(rf"{name}\W+{share}%\W+{ROWS // 3}\W+2\b", shown.stdout), shown.stdout
    even = CliRunner().invoke(
        app,
        ["capability", "plan", *overrides_of(folder, "paced.capability={column: skill, probe: null, policy: uniform}")],
    )
    assert re.search(rf"maths\W+33%\W+{ROWS // 3}\W+0\b", even.stdout), even.output


def test_the_command_wants_capabilities(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["capability", "plan", *overrides_of(folder)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "paced.capability=null" in refused.stderr
