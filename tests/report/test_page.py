"""The page without a browser: texts, weight curves, words, the command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from paced_verl.cli import app
from paced_verl.pacing.kernel import Kernel
from paced_verl.report import charts, page, verdict
from paced_verl.report.run import Run
from paced_verl.report.texts import as_text, read_texts
from paced_verl.run.record import record_end
from tests.report.runs import HOSTILE, Workshop, age


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def body(html: str) -> str:
    """The page but for plotly's own code."""
    return html[: html.index('id="charts"')]


# ---------------------------------------------------------------------- texts


def test_prompts_and_stored_responses_are_found_by_position(workshop: Workshop) -> None:
    texts = read_texts(Run.read(workshop.whole()), [0, 7])
    assert texts.prompts == {0: HOSTILE, 7: workshop.texts[7]}
    assert texts.responses == {0: ("</script> The answer to 0", True), 7: ("</script> The answer to 7", True)}
    assert texts.missing == ""


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_on_a_part_of_the_file_has_the_rows_that_verl_takes(workshop: Workshop, shuffle: bool) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    file = workshop.folder / "train.parquet"
    data = {"shuffle": shuffle, "seed": 5, "filter_overlong_prompts": False, "cache_dir": str(workshop.folder / "c")}
    taken = RLHFDataset([str(file)], tokenizer=None, config=OmegaConf.create(data), max_samples=20)
    workshop.messages = [taken.dataframe[place]["prompt"] for place in range(20)]
    workshop.prompts, workshop.ability = 20, workshop.ability[:20]
    changes = {f"data__{name}": value for name, value in (data | {"train_max_samples": 20}).items()}
    run = Run.read(workshop.begin("part", 10, **changes))
    found = read_texts(run, [0, 19])
    assert found.prompts == {place: workshop.messages[place][0]["content"] for place in (0, 19)}


def test_prompts_that_verl_left_out_leave_those_with_a_response(workshop: Workshop) -> None:
    folder = workshop.whole()
    more = [[{"role": "user", "content": "far too long"}], *workshop.messages]
    pq.write_table(pa.table({"prompt": more}), workshop.folder / "train.parquet")
    texts = read_texts(Run.read(folder), [3])
    assert texts.prompts == {3: workshop.texts[3]}
    assert "left out prompts" in texts.missing
    for parts in folder.rglob("parts.json"):
        parts.unlink()
    assert read_texts(Run.read(folder), [3]).prompts == {}


def test_training_files_in_another_order_are_not_taken_for_the_runs(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    pq.write_table(pa.table({"prompt": workshop.messages[::-1]}), workshop.folder / "train.parquet")
    texts = read_texts(Run.read(folder), [3])
    assert texts.prompts == {}
    assert "training files have changed" in texts.missing


def test_training_files_that_are_gone_are_said(workshop: Workshop) -> None:
    folder = workshop.whole()
    (workshop.folder / "train.parquet").unlink()
    html = body(page.render([Run.read(folder)]))
    assert "train.parquet cannot be read" in html
    assert "<b>Prompt 0</b>: 0 of 8" in html


def test_roles_are_shown_where_there_are_several() -> None:
    assert as_text([{"role": "user", "content": "hi"}]) == "hi"
    assert (
        as_text([{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]) == "[system] be\n\n[user] hi"
    )


def test_a_long_text_is_cut() -> None:
    assert page.cut("x" * page.LONGEST) == "x" * page.LONGEST
    assert page.cut("x" * 5000).endswith("… (5,000 characters)")


# ---------------------------------------------------------------------- charts


def test_the_weight_curve_is_that_of_the_runs_kernel(workshop: Workshop) -> None:
    first = workshop.table(0)
    plain = Run.read(workshop.begin("plain", 10))
    assert charts.kernel_of(plain, {}, first) == Kernel(prior=charts.fit_prior(first.successes, first.samples))
    fitted = charts.kernel_of(plain, {"alpha": 2.0, "beta": 0.5, "prior": (3.0, 4.0)}, None)
    assert fitted == Kernel(alpha=2.0, beta=0.5, prior=(3.0, 4.0))
    own = Run.read(workshop.begin("own", 10, paced__weight__kernel="mine"))
    assert charts.kernel_of(own, {}, first) is None, "registered in the run's processes only"
    assert charts.kernel_of(Run({}, {}), {}, first) is None


def test_a_line_keeps_its_ends_when_it_is_thinned() -> None:
    steps, values = charts.thin(range(50_000), range(50_000))
    assert (len(steps), steps[0], steps[-1], values[-1]) == (charts.POINTS, 0, 49_999, 49_999)
    assert charts.thin([1, 2], [3, 4]) == ([1, 2], [3, 4])
    assert charts.thin([], []) == ([], [])


# ---------------------------------------------------------------------- words


def test_a_page_begins_with_whether_it_worked(workshop: Workshop) -> None:
    run, flat = Run.read(workshop.whole()), Run.read(workshop.whole("flat", gain=0.02))
    worse = Run.read(workshop.whole("worse", gain=-0.3))
    assert re.match(r"Held-out accuracy rose from 45\.0\s% to 68\.8\s%, \+23\.8 points", verdict.headline(run))
    assert "not certain" in verdict.headline(flat)
    assert verdict.headline(worse).startswith("Held-out accuracy fell")
    assert verdict.headline(Run.read(workshop.begin("new", 10))) == "Held-out accuracy was not measured yet."
    steps, tokens = verdict.beside(run, Run.read(workshop.whole("twin")))
    assert steps.endswith("not separable.")
    assert "at equal tokens (700,000 tokens)" in tokens


def test_a_page_says_where_a_run_stands(workshop: Workshop) -> None:
    folder = workshop.begin("run", 20)
    workshop.train(folder, range(11), 20)
    assert re.match(r"10 of 20 steps are trained; the run is still going", verdict.standing(Run.read(folder)))
    age(folder, 7300)
    assert "No sign of life for 2 hours" in verdict.standing(Run.read(folder))
    record_end(folder / "paced", "Teacher vLLM server <b>0</b> died")
    html = body(page.render([Run.read(folder)]))
    assert "The run ended with an error" in html
    assert "Teacher vLLM server &lt;b&gt;0&lt;/b&gt; died" in html


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 seconds"), (119, "119 seconds"), (7300, "2 hours"), (1e6, "12 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert verdict.duration(seconds) == words


def test_code_in_a_sentence_is_code_and_the_rest_is_text() -> None:
    assert page.code("a `b < c` <i>") == "a <code>b &lt; c</code> &lt;i&gt;"


# ---------------------------------------------------------------------- the whole page


def test_a_page_needs_nothing_from_elsewhere_and_shows_html_as_text(workshop: Workshop) -> None:
    html = page.render([Run.read(workshop.whole())])
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=(?![\"']?data:)", html)
    assert HOSTILE not in html
    assert "&lt;img src=x onerror=&#34;window.hacked=1&#34;&gt;&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html, "not a template"
    assert html.count("</script>") == 3, "of the charts, of plotly and of the page"


def test_a_name_that_is_html_stays_text_in_the_charts_data(workshop: Workshop) -> None:
    run = Run.read(workshop.whole("x</script><script>alert(1)</script>".replace("/", "-")))
    named = Run(run.metrics, run.pass_rates, "</script><script>alert(1)</script>", run.record, run.folders)
    html = page.render([named])
    assert html.count("</script>") == 3
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert "alert(1)" in json.dumps(json.loads(data[1]))


def test_a_page_of_100_000_prompts_is_small(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, prompts=100_000)
    folder = workshop.begin("large", 10)
    workshop.train(folder, range(11), 10)
    for done, shift in ((0, -1.0), (5, 0.0), (10, 1.0)):
        workshop.estimate(folder, done, workshop.table(shift))
    html = page.render([Run.read(folder)])
    assert len(html.encode()) < 6e6, "plotly alone is 4.8 MB"
    assert html.count('class="story"') == 2 * page.STORIES


def test_a_run_that_measures_when_it_draws_shows_its_checkpoints(workshop: Workshop) -> None:
    folder = workshop.begin("draw", 20)
    workshop.train(folder, range(21), 20)
    for done in (10, 20):
        workshop.checkpoint(folder, done, workshop.table(done / 10, unseen=0.5))
    html = body(page.render([Run.read(folder)]))
    assert "These are tables of checkpoints" in html
    assert "How prompts moved" in html
    assert "<td>unseen</td>" in html


def test_the_teachers_table_is_set_beside_the_students(workshop: Workshop) -> None:
    folder = workshop.whole()
    assert "Teacher and student" not in body(page.render([Run.read(folder)]))
    workshop.table(3.0).save(folder / "global_step_40" / "paced" / "teacher_pass_rates.parquet")
    html = body(page.render([Run.read(folder)]))
    assert "Teacher and student" in html


# ---------------------------------------------------------------------- the command


def invoke(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_writes_the_page_into_the_run_or_elsewhere(workshop: Workshop) -> None:
    folder = workshop.whole(total=10)
    assert "report.html (4." in invoke(folder)
    assert "<title>paced-run: PACED run</title>" in (folder / "paced" / "report.html").read_text()
    out = workshop.folder / "new" / "page.html"
    invoke(folder, workshop.whole("uniform", total=10), "--out", out)
    assert "beside uniform" in out.read_text()


def test_the_command_prints_numbers_as_strict_json(workshop: Workshop) -> None:
    folder = workshop.whole(total=10)
    (workshop.folder / "test.parquet").unlink()  # no intervals: NaN
    numbers = json.loads(invoke(folder, "--json"), parse_constant=lambda name: pytest.fail(name))
    assert numbers["runs"]["paced-run"]["accuracy"]["gain"]["standard_error"] is None
    out = workshop.folder / "new" / "numbers.json"
    assert invoke(folder, "--json", "--out", out) == ""
    assert json.loads(out.read_text()) == numbers
    assert "--json makes none" in invoke(folder, "--json", "--open", code=2)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    assert "found neither" in re.sub(r"\s+", " ", invoke(tmp_path, code=1))


def test_without_plotly_there_are_still_numbers(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workshop.whole(total=10)
    for name in [name for name in sys.modules if name.startswith(("plotly", "paced_verl.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "pip install 'paced-verl[report]'" in invoke(folder, code=1)
    assert json.loads(invoke(folder, "--json"))["runs"]
