"""Accuracy, tokens, movement and health against closed forms, enumeration and simulation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.report.accuracy import accuracies, compare, moments, problems, samples_per_problem
from paced_verl.report.advice import ADVICE
from paced_verl.report.health import clip_share, examine
from paced_verl.report.movement import fallen, falls_by_chance, fell, group, path, risen, shares, two_way
from paced_verl.report.run import Run
from paced_verl.report.summary import gain, key_moments, pass_rate_change, summarise, summarise_all
from paced_verl.report.tokens import ALL, TRAINED, by_kind, common_counter, saved
from paced_verl.report.tokens import shares as token_shares
from paced_verl.statistics import bounded, estimate
from tests.report.runs import PROBLEMS, Workshop

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def table(successes: list[float], samples: float | list[float] = 8) -> PassRateTable:
    made = PassRateTable(len(successes))
    n = np.broadcast_to(np.asarray(samples, np.float64), (len(successes),))
    made.observe(np.arange(len(successes)), successes, n, step=1)
    return made


def validation(mean: float, std: float = 0.0, source: str = "words", n: int = 4) -> dict[str, float]:
    return {f"val-core/{source}/acc/mean@{n}": mean, f"val-aux/{source}/acc/std@{n}": std}


# ---------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_an_upper_bound_of_the_error_over_problems(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.random((300, 4)) < rng.beta(0.5, 0.5, 300)[:, None]
    true = estimate(samples.mean(1))
    loose = bounded(true.mean, 300)
    tight = bounded(true.mean, 300, within=float(samples.std(1).mean()))
    assert true.standard_error <= tight.standard_error <= loose.standard_error
    assert tight.standard_error < 1.2 * true.standard_error
    assert bounded(true.mean, 300, within=float(np.sqrt(samples.var(1).mean()))).standard_error == pytest.approx(
        true.standard_error
    ), "the law of total variance"


def test_the_bound_of_single_samples_is_the_error_itself() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    assert bounded(0.3, 100).standard_error == pytest.approx(estimate(values).standard_error)


@pytest.mark.parametrize(("mean", "units"), [(0.0, 1), (0.5, 1), (0.5, 0), (-0.3, 9), (1.4, 9)])
def test_where_the_bound_says_nothing_there_is_none(mean: float, units: int) -> None:
    assert np.isnan(bounded(mean, units).standard_error)


@pytest.mark.parametrize("units", [30, 170, 1000])
def test_where_none_or_all_are_right_the_interval_holds_what_may_well_be(units: int) -> None:
    """Of n that were wrong, rates are plausible up to where that has a chance of 2.5 % (Clopper & Pearson)."""
    exact = binomtest(0, units).proportion_ci(0.95).high
    assert bounded(0.0, units).interval[1] == pytest.approx(exact)
    assert bounded(1.0, units).interval[0] == pytest.approx(1 - bounded(0.0, units).interval[1])


def test_accuracy_is_the_mean_over_data_sources_with_their_errors() -> None:
    run = Run({0: validation(0.5, 0.1) | validation(0.8, 0.2, source="openai/gsm8k"), 1: {"other": 1.0}}, {})
    found = accuracies(run, {"words": 100, "openai/gsm8k": 50})
    errors = bounded(0.5, 100, 0.1).standard_error, bounded(0.8, 50, 0.2).standard_error
    assert list(found) == [0]
    assert found[0].mean == pytest.approx(0.65) == pytest.approx(run.accuracy()[0])
    assert found[0].standard_error == pytest.approx(np.hypot(*errors) / 2)
    assert np.isnan(accuracies(run, {"words": 100})[0].standard_error), "one source's problems are not known"


def test_problems_are_counted_in_the_validation_files(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    run = Run.read(workshop.whole())
    assert problems(run) == {"words": PROBLEMS}
    assert samples_per_problem(run) == 4
    part = workshop.begin("part", 10, data__val_max_samples=50)
    assert problems(Run.read(part)) == {"words": 50}
    (tmp_path / "test.parquet").unlink()
    assert problems(run) == {}


def counted(tokens: float, accuracy: dict[int, float]) -> Run:
    """A run that spends as many tokens each step."""
    steps = {
        step: ({} if step == 0 else {kind: tokens / len(ALL.names) for kind in ALL.names})
        | (validation(accuracy[step]) if step in accuracy else {})
        for step in range(max(accuracy) + 1)
    }
    return Run(steps, {})


def test_runs_are_compared_at_the_last_validation_within_an_equal_budget() -> None:
    dear, cheap = counted(200, {0: 0.4, 5: 0.6, 10: 0.7}), counted(100, {0: 0.4, 5: 0.5, 10: 0.55, 15: 0.6})
    ends = [moments(run, ALL, {"words": 100}) for run in (dear, cheap)]
    by_steps, by_tokens = compare(*ends)
    assert (by_steps.at, by_steps.budget, by_steps.first.step, by_steps.other.step) == ("steps", 10, 10, 10)
    assert by_steps.gain.mean == pytest.approx(0.15)
    assert (by_tokens.at, by_tokens.first.step, by_tokens.other.step) == ("tokens", 5, 15)
    assert by_tokens.budget == pytest.approx(1500)
    assert by_tokens.gain.mean == pytest.approx(0.0)
    assert by_steps.separable is True
    assert by_tokens.separable is False
    assert [found.separable for found in compare(*ends[::-1])] == [True, False], "worse is separable, too"
    assert compare(*[moments(run, ALL, {}) for run in (dear, cheap)])[0].separable is None


def test_a_run_that_has_validated_nothing_within_the_budget_is_not_compared_at_it() -> None:
    dear, cheap = counted(200, {10: 0.7}), counted(100, {10: 0.5})
    ends = [moments(run, ALL, {"words": 100}) for run in (dear, cheap)]
    assert [found.at for found in compare(*ends)] == ["steps"]
    assert [found.at for found in compare(*ends[::-1])] == ["steps"]


def test_what_moments_are_called(tmp_path: Path) -> None:
    run = Run.read(Workshop(tmp_path).whole(total=40))
    found = key_moments(run)
    assert {name: moment.step for name, moment in found.items()} == {"before": 0, "between": 16, "after": 40}
    change = gain(run)
    assert change is not None
    assert change.mean == pytest.approx(found["after"].accuracy.mean - 0.45)


# ---------------------------------------------------------------------- tokens


def test_tokens_add_up_by_kind_and_over_the_steps() -> None:
    run = Run({0: {}, 1: {"paced/tokens/teacher/prompt": 10.0, "paced/tokens/student/generated": 5.0},
               2: {"paced/tokens/teacher/prompt": 1.0, "paced/tokens/estimate/prompt": 4.0,
                   "paced/tokens/validation/prompt": 20.0}}, {})  # fmt: skip
    assert by_kind(run) == {
        "paced/tokens/student/generated": 5,
        "paced/tokens/estimate/prompt": 4,
        "paced/tokens/teacher/prompt": 11,
        "paced/tokens/validation/prompt": 20,
    }
    assert ALL.cumulative(run) == {0: 0, 1: 15, 2: 20}, "validation is not in it"
    assert token_shares(by_kind(run)) == {
        "student": 1 / 8,
        "estimate": 1 / 10,
        "teacher": 11 / 40,
        "validation": 1 / 2,
        "alignment": 0,
    }


def test_runs_that_count_differently_are_compared_by_what_both_have() -> None:
    verl = Run({1: {"perf/total_num_tokens": 7.0}}, {})
    ours = Run({1: {"perf/total_num_tokens": 7.0, "paced/tokens/teacher/prompt": 3.0}}, {})
    assert common_counter([ours]) == ALL
    assert common_counter([ours, verl]) == TRAINED
    assert common_counter([ours, Run({}, {})]) is None
    assert by_kind(Run({1: {"paced/teacher/tokens": 9.0}}, {})) == {"paced/teacher/tokens": 9.0}


def test_what_was_saved_is_summed_up() -> None:
    values = {"paced/teacher/skipped_rows": 2.0, "paced/teacher/tokens_saved": 30.0, "paced/teacher/seconds_saved": 0.5}
    found = saved(Run({1: values, 2: values}, {}))
    assert (found.rows, found.tokens, found.seconds) == (4, 60, 1)


# ---------------------------------------------------------------------- movement


def test_the_frontier_holds_its_edges() -> None:
    assert group([0.0, 0.19, 0.2, 0.8, 0.81, 1.0, np.nan]).tolist() == [1, 1, 2, 2, 3, 3, 0]


def test_prompts_are_told_by_their_groups_before_and_after() -> None:
    first, last = table([0, 0, 4, 8, 8, 0], [8, 8, 8, 8, 8, 0]), table([8, 4, 1, 8, 3, 0], [8, 8, 8, 8, 8, 0])
    flow = two_way(first, last)
    assert flow.sum() == 6
    assert {(int(i), int(j)) for i, j in np.argwhere(flow)} == {(1, 3), (1, 2), (2, 1), (3, 3), (3, 2), (0, 0)}
    assert fell(first, last).tolist() == [False, False, True, False, True, False]


def test_a_prompt_that_nobody_measured_again_has_not_fallen() -> None:
    assert not fell(table([8, 8], 8), table([0, 8], [0, 8])).any()


def test_stories_are_those_with_the_longest_way() -> None:
    tables = {0: table([0, 1, 0, 8, 7, 4]), 5: table([0, 4, 8, 8, 4, 4]), 9: table([8, 8, 7, 0, 1, 1])}
    assert risen(tables, 5) == [1, 0, 2], "1 was seen at the frontier; 0 gained more than 2"
    assert fallen(tables, 5) == [3, 4, 5], "mastered ones first, by what they lost"
    assert risen(tables, 1) == [1]
    way = path(1, tables)
    assert way.groups == ["hopeless", "frontier", "mastered"]
    assert way.counts == {0: (1, 8), 5: (4, 8), 9: (8, 8)}
    assert path(0, tables).groups == ["hopeless", "mastered"]


def test_falls_by_chance_are_what_a_simulation_of_unchanged_prompts_finds() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.8, 1.2, 40_000)
    first, last = (table(rng.binomial(8, rates).tolist()) for _ in range(2))
    assert falls_by_chance(first, last) == pytest.approx(fell(first, last).sum(), rel=0.03)


def test_falls_by_chance_leave_out_who_was_not_measured_twice() -> None:
    first, last = table([4, 8, 0], [8, 8, 0]), table([4, 0, 8], [8, 0, 8])
    assert falls_by_chance(first, last) == pytest.approx(falls_by_chance_alone(first, 0))
    assert falls_by_chance(table([0, 0], 0), last=table([1, 1], 8)) == 0


def falls_by_chance_alone(first: PassRateTable, prompt: int) -> float:
    """Of one prompt, by quadrature over its posterior under the prior of the whole table."""
    from scipy import integrate, stats

    from paced_verl.pacing.kernel import fit_prior

    a, b = fit_prior(first.successes, first.samples)
    k, n = first.successes[prompt], first.samples[prompt]
    posterior = stats.beta(a + k, b + n - k)
    return float(integrate.quad(lambda p: posterior.pdf(p) * stats.binom.cdf(1, n, p), 0, 1)[0])


def test_shares_are_of_the_measured_prompts_at_k_of_n() -> None:
    assert shares(table([0, 2, 2, 4, 0], [4, 4, 4, 4, 0]), 4).tolist() == [0.25, 0, 0.5, 0, 0.25]
    assert np.isnan(shares(table([0, 0], 0), 4)).all()


def test_the_change_of_pass_rates_is_paired_over_prompts_measured_twice() -> None:
    first, last = table([0, 4, 8, 0], [8, 8, 8, 0]), table([4, 8, 8, 8])
    change = pass_rate_change(Run({}, {0: first, 9: last}))
    assert change is not None
    assert change.mean == pytest.approx(np.mean([0.5, 0.5, 0.0]))
    assert change.standard_error == pytest.approx(np.std([0.5, 0.5, 0.0], ddof=1) / np.sqrt(3))
    assert pass_rate_change(Run({}, {0: first})) is None


# ---------------------------------------------------------------------- health


def prose(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("metric", ADVICE)
def test_a_page_says_what_the_documentation_says(metric: str) -> None:
    text, advice = DOCS.read_text(), ADVICE[metric]
    assert advice.remedy in prose(text)
    name = metric.removeprefix("paced/pass_rate/")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{metric}`") or f"`{name}`" in line]
    assert any(advice.healthy in row for row in rows), rows


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("paced/weight/ess", [0.1] * 18 + [0.5, 0.4], [0.9] * 18 + [0.2, 0.3]),
        ("paced/weight/zero_share", [0.9] * 18 + [0.4, 0.4], [0.1] * 18 + [0.5, 0.6]),
        ("paced/weight/max", [3.0], [12.0]),
        ("paced/pass_rate/low", [0.4, 0.6], [0.6, 0.4]),
        ("paced/pass_rate/high", [0.5, 0.9], [0.9, 0.9]),
        ("paced/sampler/entropy", [0.9], [0.7]),
        ("paced/divergence/tail_mass", [0.029], [0.031]),
        ("paced/rollout/failed", [0.0, 0.0], [0.0, 1.0]),
    ],
)
def test_a_metric_outside_of_its_range_is_found(metric: str, good: list[float], bad: list[float]) -> None:
    for values, ok in ((good, True), (bad, False)):
        (finding,) = examine(Run({step: {metric: value} for step, value in enumerate(values, 1)}, {}))
        assert (finding.metric, finding.ok) == (metric, ok)


def test_a_divergence_has_to_fall_in_each_stage() -> None:
    def run(second: float) -> Run:
        values = [1 - step / 20 for step in range(10)] + [2 + second * step for step in range(10)]
        stages = [1.0] * 10 + [2.0] * 10
        return Run(
            {
                i + 1: {"paced/divergence/value": v, "paced/stage": s}
                for i, (v, s) in enumerate(zip(values, stages, strict=True))
            },
            {},
        )

    assert [finding.ok for finding in examine(run(-0.1))] == [True], "it jumps at the switch"
    assert [finding.ok for finding in examine(run(0.1))] == [False]


def test_pass_rates_are_old_after_half_a_stage(tmp_path: Path) -> None:
    folder = Workshop(tmp_path).begin("run", 40)
    for age, ok in ((9.0, True), (11.0, False)):
        run = Run({1: {"paced/sampler/staleness": age}}, {}, record=Run.read(folder).record)
        assert [finding.ok for finding in examine(run)] == [ok]


def test_a_student_that_gets_worse_is_found() -> None:
    def run(low: float, frontier: float) -> Run:
        start = {"paced/pass_rate/low": 0.2, "paced/pass_rate/frontier": 0.5}
        return Run({1: start, 2: {"paced/pass_rate/low": low, "paced/pass_rate/frontier": frontier}}, {})

    judged = {finding.metric: finding.ok for finding in examine(run(0.4, 0.3))}
    assert judged == {"paced/pass_rate/low": True, "paced/pass_rate/frontier": False}
    assert all(finding.ok for finding in examine(run(0.1, 0.3)))


def test_the_share_of_clipped_steps(tmp_path: Path) -> None:
    folder = Workshop(tmp_path).begin("run", 40)
    record = Run.read(folder).record
    run = Run(
        {1: {"actor/grad_norm": 0.9}, 2: {"actor/grad_norm": 1.1}, 3: {"actor/grad_norm": 7.0}}, {}, record=record
    )
    assert clip_share(run) == pytest.approx(2 / 3)
    assert [finding.ok for finding in examine(run)] == [False]
    assert clip_share(Run(run.metrics, {})) is None


# ---------------------------------------------------------------------- all of it


def test_the_summary_of_a_whole_run(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    run = Run.read(workshop.whole())
    found = summarise(run)
    assert found["status"]["state"] == "finished"
    assert found["accuracy"]["problems"] == PROBLEMS
    assert found["pass_rate_histograms"].keys() == {"after_0_steps", "after_20_steps", "after_40_steps"}
    assert {stage: numbers["steps"] for stage, numbers in found["stages"].items()} == {1: 20, 2: 20}
    assert found["teacher_tokens"] == 40 * 9000
    assert np.sum(found["movement"]["from_first_to_last"]) == workshop.prompts
    assert set(found["unhealthy"]) >= {"paced/divergence/tail_mass", "paced/weight/zero_share"}
    both = summarise_all([run, Run.read(workshop.whole("other", gain=0.1))])
    assert {each["at_equal"] for each in both["paced-run minus"]["other"]} == {"steps", "tokens"}


def test_an_empty_run_has_a_summary_too(tmp_path: Path) -> None:
    found = summarise(Run.read(Workshop(tmp_path).begin("run", 20)))
    assert found["status"]["step"] == 0
    assert found["accuracy"] == {}
    assert found["movement"] is None
