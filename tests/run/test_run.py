"""The decisions of a whole run, without Ray: stages, estimates, draws, what is learnt, and going on after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paced_verl import fields
from paced_verl.config import PacedConfig
from paced_verl.pacing import policies
from paced_verl.pacing.kernel import Kernel, fit_prior
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.protocol import IntArray, PromptSampler, SamplerSettings
from paced_verl.run.measure import Counts
from paced_verl.run.outcomes import Outcome, Report
from paced_verl.run.state import PacedState
from paced_verl.targets.store import Target, TargetStore
from tests.run.test_step_rows import step_rows

PROMPTS, BATCH, STEPS = 12, 4, 8
TWO_STAGES = [
    {"until": 0.5, "divergence": "forward_kl", "responses": "teacher"},
    {"until": 1.0, "divergence": "reverse_kl", "responses": "student"},
]
TOKENIZER = SimpleNamespace(
    encode=lambda text, add_special_tokens: [ord(sign) for sign in text],
    decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)),
    eos_token_id=0,
)


class Student:
    """Solves prompt i of N in i · K // N of K cases."""

    def __init__(self) -> None:
        self.measured: list[tuple[int, int]] = []
        self.prompts: list[int] = []

    def measure(self, which: IntArray, samples: int, by: str = "student") -> Counts:
        self.measured.append((len(which), samples))
        self.prompts += which.tolist()
        correct = which * samples // PROMPTS
        return Counts(which, correct, np.full(len(which), samples), np.full(len(which), 5 * samples))


class Run:
    """A run as the trainer drives it, checkpoint by checkpoint."""

    def __init__(self, folder: Path, schedule: list[dict[str, Any]] = TWO_STAGES, **block: Any):
        paced = PacedConfig.parse({"schedule": schedule, "pass_rate": {"samples": 4}} | block)
        data = [{"raw_prompt": [{"role": "user", "content": f"problem {i}"}]} for i in range(PROMPTS)]
        self.folder, self.student = folder, Student()
        self.state = PacedState(
            paced,
            paced.build_schedule(STEPS),
            prompts=PROMPTS,
            epoch_size=PROMPTS,
            batch=BATCH,
            student_n=2,
            dataset=data,
            tokenizer=TOKENIZER,
            history=folder / "history",
        )

    def step(self, step: int) -> dict[str, list[Any]]:
        """Returns what the rows were told, and the prompts they are of."""
        self.state.rates.before_step(step, self.student.measure)
        self.state.rates.before_draw(step, BATCH, self.student.measure)
        prompts = self.state.rates.sampler.draw(BATCH)
        told = self.state.tell(prompts, step)
        ahead = self.state.rates.ahead(step)
        if ahead.size:  # rides along with the step's rollouts
            self.state.rates.take_ahead(self.student.measure(ahead, 4), None, step, seconds=0.5)
        n = told[fields.SESSIONS][0]
        keys = [f"{step}.{i}_{session}_0" for i in range(BATCH) for session in range(n)]
        of_row = np.repeat(prompts, n)
        rows = step_rows(
            keys,
            of_row.tolist(),
            stages=np.repeat(told[fields.STAGE], n),
            weight=np.repeat(np.array(told[fields.WEIGHT], np.float32), n),
            correct=(of_row + np.arange(len(keys)) + step) % 3 > 0,
        )
        self.state.learn(rows, Report(), step)
        return told | {"prompts": prompts.tolist()}

    def save(self) -> dict[str, Any]:
        self.state.save(self.folder / "paced", step=0)
        return self.state.rates.sampler.state_dict()

    def resume(self, sampler: dict[str, Any]) -> None:
        self.state.load(self.folder / "paced")
        self.state.rates.sampler.load_state_dict(sampler)


def test_a_run_of_two_stages_decides_as_its_schedule_says(tmp_path: Path) -> None:
    run = Run(tmp_path)
    told = {step: run.step(step) for step in range(1, STEPS + 1)}
    assert [told[step][fields.STAGE][0] for step in told] == [0] * 4 + [1] * 4
    assert [told[step][fields.RESPONSES][0] for step in told] == ["teacher"] * 4 + ["student"] * 4
    assert [told[step][fields.SESSIONS][0] for step in told] == [1] * 4 + [2] * 4
    assert run.student.measured == [(PROMPTS, 4)] * 2, "at the start and at the switch"
    assert sorted(path.stem for path in (tmp_path / "history").iterdir()) == ["after_step_0", "after_step_4"]


def test_prompts_in_an_epoch_come_once_and_those_of_weight_0_never(tmp_path: Path) -> None:
    run = Run(tmp_path)
    drawn = [prompt for step in (1, 2) for prompt in run.step(step)["prompts"]]
    mastered_or_hopeless = {i for i in range(PROMPTS) if i * 4 // PROMPTS in (0, 4)}
    assert set(drawn) <= set(range(PROMPTS)) - mastered_or_hopeless
    assert len(set(drawn)) == len(drawn)


def test_a_teachers_response_is_stored_and_told_the_next_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.step(1)
    assert first[fields.TARGET] == [None] * BATCH, "the teacher writes"
    again = run.state.tell(np.array(first["prompts"]), step=2)
    assert again[fields.TARGET] == [[prompt, 9] for prompt in first["prompts"]]
    assert run.state.tell(np.array(first["prompts"]), step=5)[fields.TARGET] == [None] * BATCH, "the student's own"


def test_the_data_may_hold_the_responses(tmp_path: Path) -> None:
    run = Run(tmp_path, targets={"column": "extra_info.response"})
    for i, row in enumerate(run.state.dataset):
        row["extra_info"] = {"response": "ab"} if i % 2 else {}
    told = run.state.tell(np.arange(2), step=1)
    assert told[fields.TARGET] == [None, [ord("a"), ord("b"), 0]]


@pytest.mark.parametrize("killed_after", range(1, STEPS))
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_run_that_is_killed_after_any_step_goes_on_as_if_it_had_not_been(
    killed_after: int, power: float, tmp_path: Path
) -> None:
    settings = {"sampler": {"power": power}, "weight": {"estimate": "posterior"}}
    undisturbed = Run(tmp_path / "undisturbed", **settings)
    expected = [undisturbed.step(step) for step in range(1, STEPS + 1)]

    killed = Run(tmp_path / "killed", **settings)
    before = [killed.step(step) for step in range(1, killed_after + 1)]
    sampler = killed.save()
    resumed = Run(tmp_path / "killed", **settings)
    resumed.resume(sampler)
    assert before + [resumed.step(step) for step in range(killed_after + 1, STEPS + 1)] == expected
    assert resumed.state.rates.table.samples.tolist() == undisturbed.state.rates.table.samples.tolist()
    assert resumed.state.targets[expected[0]["prompts"][0]] == undisturbed.state.targets[expected[0]["prompts"][0]]
    assert len(killed.student.measured) + len(resumed.student.measured) == len(undisturbed.student.measured)


DRAW = {"refresh": "draw", "samples": 4, "ahead": 1}


@pytest.mark.parametrize("killed_after", range(1, STEPS))
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_run_that_measures_what_it_draws_goes_on_after_a_kill_in_any_window(
    killed_after: int, power: float, tmp_path: Path
) -> None:
    settings = {"sampler": {"power": power}, "pass_rate": DRAW | {"max_age": 3}, "weight": {"estimate": "posterior"}}
    undisturbed = Run(tmp_path / "undisturbed", **settings)
    expected = [undisturbed.step(step) for step in range(1, STEPS + 1)]
    killed = Run(tmp_path / "killed", **settings)
    before = [killed.step(step) for step in range(1, killed_after + 1)]
    sampler = killed.save()
    resumed = Run(tmp_path / "killed", **settings)
    resumed.resume(sampler)
    assert before + [resumed.step(step) for step in range(killed_after + 1, STEPS + 1)] == expected
    assert resumed.state.rates.table.samples.tolist() == undisturbed.state.rates.table.samples.tolist()
    assert resumed.state.rates.kernel == undisturbed.state.rates.kernel, "the fitted prior, too"
    assert killed.student.prompts + resumed.student.prompts == undisturbed.student.prompts


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_only_what_is_drawn_is_measured_and_never_more_than_at_the_start(power: float, tmp_path: Path) -> None:
    short = Run(tmp_path, sampler={"power": power}, pass_rate=DRAW)
    drawn = short.step(1)["prompts"] + short.step(2)["prompts"]
    assert set(drawn) <= set(short.student.prompts)
    whole = Run(tmp_path, sampler={"power": power}, pass_rate=DRAW)
    for step in range(1, STEPS + 1):
        whole.step(step)
    assert sorted(whole.student.prompts) == list(range(PROMPTS)), "each once, in a run of more than two epochs"


def test_nothing_is_measured_after_the_last_draw(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate=DRAW)
    assert run.state.rates.ahead(STEPS - 1).size > 0
    assert run.state.rates.ahead(STEPS).size == 0
    assert Run(tmp_path).state.rates.ahead(1).size == 0, "all are measured at the start"


def test_what_measuring_cost_is_said_once(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate=DRAW)
    run.state.rates.before_draw(1, BATCH, run.student.measure)
    prompts = len(run.student.prompts)
    assert run.state.rates.pop_amounts()["paced/pass_rate/measured"] == prompts
    assert run.state.rates.pop_amounts() == {}


def test_what_is_left_to_the_data_is_fitted_again_when_twice_as_much_is_known(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate=DRAW, weight={"estimate": "posterior"})
    priors = set()
    for known in range(PROMPTS):
        run.state.rates.take(run.student.measure(np.array([known]), 4), step=1)
        priors.add(run.state.rates.kernel.prior)
        table = run.state.rates.table
        if known + 1 in (1, 2, 4, 8):
            assert run.state.rates.kernel.prior == fit_prior(table.successes, table.samples)
    assert len(priors) <= 4


def test_a_prompt_whose_responses_fail_is_not_measured_for_ever(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate=DRAW)
    asked = []

    def fails(which: IntArray, samples: int) -> Counts:
        asked.append(which.tolist())
        return Counts(which, *(np.zeros(len(which), np.int64) for _ in range(3)))

    run.state.rates.before_draw(1, BATCH, fails)
    assert len(asked) == 1


def test_a_resumed_run_knows_what_was_measured_in_vain(tmp_path: Path) -> None:
    """Of the student and of the teacher: it asks for what an undisturbed run asks for."""
    block: dict[str, Any] = {"pass_rate": DRAW | {"teacher_samples": 2}, "weight": {"teacher": "gate"}}
    first, second = Run(tmp_path, **block), Run(tmp_path, **block)

    def fails(which: IntArray, samples: int, by: str = "student") -> Counts:
        return Counts(which, *(np.zeros(len(which), np.int64) for _ in range(3)))

    first.state.rates.before_draw(1, BATCH, fails)
    second.resume(first.save())
    everyone = np.arange(PROMPTS)
    for run in (first, second):
        assert run.state.rates.sampler.missing(1, BATCH).size == 0  # type: ignore[attr-defined]
    assert second.state.rates.unjudged(everyone).tolist() == first.state.rates.unjudged(everyone).tolist()


def test_what_a_file_knows_is_as_old_as_this_run(tmp_path: Path) -> None:
    """Its steps are those of the run that wrote it."""
    table = PassRateTable(PROMPTS)
    table.observe(np.arange(PROMPTS), np.full(PROMPTS, 2), np.full(PROMPTS, 4), step=500)
    table.save(tmp_path / "old.parquet")
    run = Run(tmp_path, pass_rate=DRAW | {"max_age": 2, "file": str(tmp_path / "old.parquet")})
    assert run.state.rates.table.staleness(1) == 1
    sampler: Any = run.state.rates.sampler
    assert [sampler.missing(step, BATCH).size for step in (1, 2, 3)] == [0, 0, BATCH]


def test_the_teachers_own_pass_rate_is_learnt_from_what_it_writes(tmp_path: Path) -> None:
    """One response a prompt; wrong ones shut the gate, so that these prompts are not drawn again."""
    run = Run(tmp_path, weight={"teacher": "gate", "estimate": "posterior"})
    drawn = [run.step(step)["prompts"] for step in (1, 2, 3)]
    teacher = run.state.rates.teacher
    assert sorted(np.flatnonzero(teacher.samples).tolist()) == sorted({p for prompts in drawn for p in prompts})
    wrong = np.flatnonzero((teacher.samples > 0) & (teacher.successes == 0))
    assert wrong.size, "otherwise nothing is seen here"
    weights = run.state.rates.sampler.weights()  # type: ignore[attr-defined]
    assert (weights[wrong] == 0).all()
    later = [prompt for step in range(4, STEPS + 1) for prompt in run.step(step)["prompts"]]
    assert not set(later) & set(wrong.tolist())


def test_the_teacher_is_judged_where_it_is_asked_to_be_and_once(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate=DRAW | {"teacher_samples": 2, "max_age": 1}, weight={"teacher": "product"})
    asked: list[int] = []

    def measure(which: IntArray, samples: int, by: str = "student") -> Counts:
        if by == "teacher":
            assert samples == 2
            asked.extend(which.tolist())
            return Counts(which, which % 3, np.full(len(which), 2), np.full(len(which), 9))
        return run.student.measure(which, samples)

    rates = run.state.rates
    for step in (1, 2, 3):
        rates.before_draw(step, BATCH, measure)
        prompts = rates.sampler.draw(BATCH)
        assert (rates.teacher.samples[prompts] == 2).all(), "before it is drawn"
        rates.sampler.loss_weights(prompts)
    assert len(asked) == len(set(asked)), "a teacher that is frozen is judged once"
    assert rates.teacher_metrics()["paced/teacher/pass_rate"] == pytest.approx(np.mean(np.array(asked) % 3) / 2)


def test_tries_of_the_teacher_are_counted_once_a_prompt_and_stored_with_its_response(tmp_path: Path) -> None:
    """Three tries for prompt 1, of which the last is kept; four for prompt 2, in vain; prompt 3 was judged before."""
    run = Run(tmp_path)
    teacher = run.state.rates.teacher
    run.state.rates.observe_teacher(np.array([3]), np.array([0]), np.array([5]), step=0)
    asked = {"tries": np.array([3.0, 4.0, 1.0]), "gave_up": np.array([0.0, 1.0, 0.0])}
    run.state.learn(step_rows(["a_0_0", "b_0_0", "c_0_0"], [1, 2, 3], asked=asked), Report(), step=1)
    assert (teacher.successes[[1, 2, 3]].tolist(), teacher.samples[[1, 2, 3]].tolist()) == ([1, 0, 0], [3, 4, 5])
    assert [run.state.targets[prompt].tries for prompt in (1, 2)] == [3, 4]


def test_what_a_file_of_targets_knows_of_the_teacher_counts_from_the_start(tmp_path: Path) -> None:
    store = TargetStore()
    for prompt, correct, tries in ((1, True, 3), (2, False, 4), (3, None, 1)):
        store.add(prompt, Target((1,), "x", correct, tries=tries))
    store.save(tmp_path / "targets.parquet")
    run = Run(tmp_path, targets={"file": str(tmp_path / "targets.parquet")}, weight={"teacher": "gate"})
    teacher = run.state.rates.teacher
    assert (teacher.successes[:4].tolist(), teacher.samples[:4].tolist()) == ([0, 1, 0, 0], [0, 3, 4, 0])
    weights = run.state.rates.sampler.weights()  # type: ignore[attr-defined]
    assert (weights[1:3] == 0).all()
    assert weights[3] > 0, "a response that nobody judged"


def test_a_checkpoint_of_a_run_that_measures_what_it_draws_leaves_its_table_for_the_report(tmp_path: Path) -> None:
    for refresh, left in (("draw", ["after_step_2.parquet"]), ("never", [])):
        run = Run(tmp_path / refresh, pass_rate={"samples": 4, "refresh": refresh}, weight={"estimate": "posterior"})
        run.state.save(run.folder / "paced", step=2)
        assert [file.name for file in (run.folder / "history").glob("*")] == left


def test_a_resumed_run_knows_the_teacher(tmp_path: Path) -> None:
    first = Run(tmp_path, weight={"teacher": "gate", "estimate": "posterior"})
    for step in (1, 2):
        first.step(step)
    sampler = first.save()
    second = Run(tmp_path, weight={"teacher": "gate", "estimate": "posterior"})
    second.resume(sampler)
    np.testing.assert_array_equal(second.state.rates.teacher.successes, first.state.rates.teacher.successes)
    np.testing.assert_array_equal(
        second.state.rates.sampler.weights(),  # type: ignore[attr-defined]
        first.state.rates.sampler.weights(),  # type: ignore[attr-defined]
    )


def test_prompts_that_could_teach_and_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = Run(tmp_path)
    rates = run.state.rates
    rates.observe_teacher(np.arange(PROMPTS), np.full(PROMPTS, 1), np.full(PROMPTS, 1), step=1)
    table = PassRateTable(PROMPTS)
    table.observe(np.arange(PROMPTS), [2] * 4 + [0] * 8, [4] * PROMPTS, step=1)
    rates.use(table, step=1)
    said = capsys.readouterr().out
    assert "67% of the prompts weigh 0" in said
    assert "solves 100% of these" in said
    assert "estimate=posterior" in said
    rates.observe_teacher(np.arange(4, 12), np.zeros(8), np.full(8, 3), step=1)
    rates.use(table, step=2)
    assert "weigh 0" not in capsys.readouterr().out, "a teacher that is wrong there could not"


def test_an_estimate_that_a_kill_cut_short_is_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 5):
        run.step(step)
    sampler = run.save()  # the estimate before step 5 never ended
    resumed = Run(tmp_path)
    resumed.resume(sampler)
    resumed.step(5)
    assert resumed.student.measured == [(PROMPTS, 4)]


def test_learning_counts_rollouts_of_the_student_once_and_leaves_the_teachers_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate={"refresh": "never", "samples": 4}, weight={"estimate": "posterior"})
    teachers = step_rows(["a_0_0"], [3], stages=[0])
    run.state.learn(teachers, Report(), step=1)
    assert run.state.rates.table.samples.sum() == 0
    students = step_rows(["b_0_0", "b_0_1", "b_1_0"], [2, 2, 2], stages=[1] * 3, correct=[True, True, False])
    _, amounts = run.state.learn(students, Report(["ValueError: no"]), step=5)
    assert run.state.rates.table.samples.tolist() == [0, 0, 2, *[0] * 9]
    assert run.state.rates.table.successes[2] == 1
    assert amounts["paced/rollout/failed"] == 1


def test_under_dapos_filter_every_group_counts_whether_or_not_it_trains(tmp_path: Path) -> None:
    run = Run(tmp_path, pass_rate={"refresh": "never"}, weight={"estimate": "posterior"})
    run.state.filters_groups = True
    outcomes = [
        Outcome(2, successes=1, responses=2),
        Outcome(0, successes=0, responses=2, dropped=True, teacher_tokens=3.0),
        Outcome(1, successes=2, responses=2, dropped=True),
        Outcome(3, error="ValueError: no"),
    ]
    rows = step_rows(["a_0_0", "a_1_0"], [2, 2], stages=[1, 1], correct=[True, False])
    _, amounts = run.state.learn(rows, Report([], outcomes), step=5)
    assert run.state.rates.table.samples[:4].tolist() == [2, 2, 2, 0]
    assert run.state.rates.table.successes[:4].tolist() == [0, 2, 1, 0]
    assert amounts["paced/teacher/tokens_dropped"] == 3


def test_routed_rows_are_counted(tmp_path: Path) -> None:
    student = [{"until": 1.0, "divergence": "reverse_kl", "responses": "student"}]
    run = Run(tmp_path, schedule=student, route={"context": "answer"})
    rows = step_rows(
        ["a_0_0", "b_0_0", "c_0_0"],
        [0, 1, 2],
        weight=[1.0, 0.0, 1.0],
        task=[0.0, 0.0, 1.0],
        asked={"self_taught": np.array([1.0, 0.0, 0.0])},
    )
    _, amounts = run.state.learn(rows, Report(), step=1)
    assert amounts["paced/route/no_task"] == 2
    assert amounts["paced/route/self_taught"] == 1
    assert amounts["paced/teacher/skipped_rows"] == 1


class InOrder:
    """A sampler of another kind: the data's own order, weights 1."""

    mean_weight = 1.0

    def __init__(self, size: int):
        self.size, self.next, self.updated = size, 0, []  # type: ignore[var-annotated]

    def draw(self, n: int) -> IntArray:
        self.next += n
        return np.arange(self.next - n, self.next) % self.size

    def loss_weights(self, prompts: IntArray) -> Any:
        return np.ones(len(prompts), np.float32)

    def update(self, prompts: Any) -> None:
        self.updated += np.asarray(prompts).tolist()

    def refresh(self, kernel: Kernel | None = None, table: PassRateTable | None = None) -> None:
        self.kernel = kernel

    def __iter__(self) -> Iterator[int]:
        yield from self.draw(self.size).tolist()

    def __len__(self) -> int:
        return self.size

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]

    def metrics(self, step: int) -> dict[str, float]:
        return {"in_order/next": float(self.next)}


def in_order(table: PassRateTable, kernel: Kernel, settings: SamplerSettings) -> PromptSampler:
    return InOrder(len(table))


def test_a_sampler_of_another_kind_is_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_POLICIES", policies._POLICIES | {"in_order": in_order})
    run = Run(tmp_path, sampler={"policy": "in_order"})
    steps = [run.step(step) for step in range(1, 6)]
    assert [told["prompts"] for told in steps[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert steps[4][fields.WEIGHT] == [1.0] * BATCH
    assert set(run.state.rates.sampler.updated) == set(steps[4]["prompts"]), "it hears of what was observed"  # type: ignore[attr-defined]
    sampler = run.save()
    resumed = Run(tmp_path, sampler={"policy": "in_order"})
    resumed.resume(sampler)
    assert resumed.step(6)["prompts"] == [8, 9, 10, 11]


class Ledger:
    """A part of a checkpoint that the state knows nothing of."""

    spent = 0

    def save(self, path: Path) -> None:
        path.write_text(str(self.spent))

    def load(self, path: Path) -> None:
        self.spent = int(path.read_text())


def test_a_checkpoint_has_room_for_other_parts(tmp_path: Path) -> None:
    run, resumed = Run(tmp_path), Run(tmp_path)
    for each in (run, resumed):
        each.state.parts["ledger.txt"] = Ledger()
    run.step(1)
    run.state.parts["ledger.txt"].spent = 7  # type: ignore[attr-defined]
    resumed.resume(run.save())
    assert resumed.state.parts["ledger.txt"].spent == 7  # type: ignore[attr-defined]
