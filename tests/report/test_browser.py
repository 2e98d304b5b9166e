"""Pages in a real browser: Debian's chromium, driven by playwright. One load a state of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paced_verl.report.page import write_page
from paced_verl.report.run import read_all
from paced_verl.run.record import record_end
from tests.report.runs import HOSTILE, Workshop, age
from tests.report.test_capability import left_by
from tests.run.test_capability import NAMES

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]
DRAWN = """() => Object.keys(JSON.parse(document.getElementById("charts").textContent)).map(id => {
  const div = document.getElementById(id), box = div.getBoundingClientRect();
  return [id, div.querySelectorAll("svg.main-svg .trace, svg.main-svg .hm, svg.main-svg .errorbar").length,
    box.width > 200 && box.height > 100, div.querySelectorAll(".xtick, .ytick").length];
})"""
CONTRAST = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
    .map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  const light = colour => { const [r, g, b] = channels(colour); return .2126 * r + .7152 * g + .0722 * b; };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, td, th, h1, h2, a, figcaption, .xtick text, .ytick text")];
  const found = texts.map(t => light(t.tagName === "text" ? getComputedStyle(t).fill : getComputedStyle(t).color));
  return Math.min(...found.map(t => (Math.max(t, page) + .05) / (Math.min(t, page) + .05)));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        # Root in a container has no sandbox.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that is open, and what its console said."""

    def __init__(self, browser: Any, file: Path, width: int = 1200, scheme: str = "light"):
        self.said: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=False)
        context.route("http*://**", lambda route: (self.said.append(f"asked for {route.request.url}"), route.abort()))
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.goto(file.resolve().as_uri())

    @property
    def text(self) -> str:
        return str(self.page.inner_text("body"))

    def check(self) -> list[str]:
        """Assert that nothing was said and every chart is drawn; returns the charts."""
        drawn = self.page.evaluate(DRAWN)
        assert self.said == []
        assert all(traces and sized and ticks for _, traces, sized, ticks in drawn), drawn
        assert len(drawn) == self.page.locator(".chart").count()
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]
        return [name for name, *_ in drawn]


def test_a_run_over_capabilities_is_drawn_with_its_matrix(chromium: Any, tmp_path: Path) -> None:
    run = left_by(tmp_path, policy="gains", budget=24 * 48 * 40)
    write_page([run], tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html", width=800)
    drawn = [name for name in opened.check() if name.startswith("capability-")]
    assert drawn == [f"capability-{chart}" for chart in ("shares", "scores", "reward", "budget")]
    assert opened.page.locator("#capability-shares .scatter").count() == 2 * len(NAMES), "planned and realised"
    matrix = opened.page.locator("h3:has-text('Gains and spillovers') + .wide table")
    assert matrix.locator("th").all_inner_texts()[1:] == list(NAMES)
    assert matrix.locator("td:first-child").all_inner_texts() == list(NAMES)
    assert opened.page.evaluate(CONTRAST) >= 4.5


def test_three_runs_are_drawn_side_by_side_with_every_chart(chromium: Any, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    folders = [workshop.whole(), workshop.whole("uniform", gain=0.15), workshop.whole("hard-filter", gain=0.2)]
    write_page(read_all(folders), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html")
    charts = opened.check()
    assert charts == [
        *("accuracy-steps", "accuracy-tokens", "budget", "pass-rates", "groups"),
        *("weights", "divergence", "tail", "staleness", "gradient"),
    ]
    assert opened.page.locator("#accuracy-tokens .scatter").count() == 3
    assert "Beside uniform at equal steps (40 steps)" in opened.text
    assert "Beside hard-filter at equal tokens" in opened.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_hostile_prompt_is_text_and_a_narrow_page_does_not_scroll_sideways(
    scheme: str, chromium: Any, tmp_path: Path
) -> None:
    folder = Workshop(tmp_path).whole("a-run-with-" + "a-long-name-" * 12)
    write_page(read_all([folder]), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html", width=400, scheme=scheme)
    opened.check()
    assert opened.page.evaluate("window.hacked") is None
    assert HOSTILE in opened.text
    assert opened.page.evaluate(CONTRAST) > 4.5, "WCAG AA"
    before = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.page.click("#theme")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert opened.page.evaluate(CONTRAST) > 4.5
    opened.check()


def test_an_empty_run_says_that_it_has_only_begun(chromium: Any, tmp_path: Path) -> None:
    folder = Workshop(tmp_path).begin("empty", 20)
    (folder / "metrics-0.jsonl").write_text("")
    write_page(read_all([folder]), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html")
    assert opened.check() == []
    assert "0 of 20 steps are trained; the run is still going" in opened.text
    assert "Held-out accuracy was not measured yet." in opened.text


def test_a_killed_run_with_half_a_line_says_how_far_it_came(chromium: Any, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    folder = workshop.begin("killed", 20)
    workshop.train(folder, range(12), 20)
    with (folder / "metrics-0.jsonl").open("a") as file:
        file.write('{"step": 12, "data": {"paced/st')
    age(folder, 4 * 3600)
    write_page(read_all([folder]), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html")
    assert "groups" in opened.check()
    assert "11 of 20 steps are trained. No sign of life for 4 hours" in opened.text
    assert "the last line has no end" in opened.text


def test_an_aborted_run_says_of_what(chromium: Any, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    folder = workshop.begin("aborted", 20)
    workshop.train(folder, [1], 20)
    record_end(folder / "paced", "Teacher vLLM server teacher_model/0 died: out of memory")
    write_page(read_all([folder]), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html")
    opened.check()
    assert "Teacher vLLM server teacher_model/0 died: out of memory" in opened.text


def test_a_run_of_verls_own_trainer_shows_what_it_has_and_says_what_is_missing(chromium: Any, tmp_path: Path) -> None:
    """As ``+paced=advantage`` leaves: verl's metrics alone."""
    values = {"critic/score/mean": 0.5, "actor/grad_norm": 0.4, "perf/total_num_tokens": 900.0}
    entries = [{"step": step, "data": values | {"val-core/words/acc/mean@1": 0.4 + step / 50}} for step in range(1, 9)]
    file = tmp_path / "advantage.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_page(read_all([file]), tmp_path / "page.html")
    opened = Opened(chromium, tmp_path / "page.html")
    assert opened.check() == ["accuracy-steps", "accuracy-tokens", "gradient"]
    assert "There is no paced/run.json" in opened.text
    assert "8 steps are logged; how many were planned is not known." in opened.text


def test_100_000_prompts_open(chromium: Any, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, prompts=100_000)
    folder = workshop.begin("large", 2000)
    workshop.train(folder, range(2001), 2000)
    for done in range(0, 2001, 200):
        workshop.estimate(folder, done, workshop.table(done / 1000 - 1))
    write_page(read_all([folder]), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 15e6
    opened = Opened(chromium, tmp_path / "page.html")
    assert "pass-rates" in opened.check()
    paint = opened.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {paint:.0f} ms, all charts after {opened.page.evaluate('performance.now()'):.0f} ms")
