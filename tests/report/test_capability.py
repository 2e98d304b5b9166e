"""The section on capabilities, of simulated runs: what decided and what came of it, in words and charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paced_verl.capability.headroom import Transfer, hindsight
from paced_verl.capability.optimum import Aim
from paced_verl.report import capability, page
from paced_verl.report.run import Run
from tests.report.runs import Workshop
from tests.run.test_capability import EVERY, NAMES, STEPS
from tests.run.test_capability import Run as Simulated


def left_by(tmp_path: Path, steps: int = STEPS, end: bool = True, **settings: Any) -> Run:
    """A run that allocated, read from the files it left."""
    workshop = Workshop(tmp_path)
    folder = workshop.begin("run", STEPS)
    record = json.loads((folder / "paced" / "run.json").read_text())
    record["config"]["paced"]["capability"] = settings
    (folder / "paced" / "run.json").write_text(json.dumps(record))
    run = Simulated(folder / "paced" / "capability", **settings)
    with (folder / "metrics-0.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            run.steps(step, step)
            file.write(json.dumps({"step": step, "data": run.allocation.metrics()}) + "\n")
    if end:
        run.allocation.after_run(run.student.measure)
    return Run.read(folder)


def section(run: Run) -> str:
    html = page.render([run])
    start = html.index('<h2 id="capabilities">')
    return html[start : html.index('<h2 id="learned">')]


def test_a_run_with_gains_shows_everything(tmp_path: Path) -> None:
    requirement = {"code": 0.2, "maths": 0.2, "words": 0.6}
    run = left_by(tmp_path, policy="gains", budget=24 * 48 * 40, requirement=requirement)
    html = section(run)
    assert "6 decisions by the policy gains closed." in html
    assert "Gains and spillovers" in html
    for chart in ("shares", "scores", "reward", "budget"):
        assert f'id="capability-{chart}"' in html
    trained = sum(row["realised_tokens"] for row in run.decisions)
    assert f"Of a budget of 46,080 tokens {trained:,.0f} were trained on ({trained / 46080:.0%})." in html
    assert f"<td>responses that train</td><td>{trained:,.0f}</td>" in html
    first = [row for row in run.decisions if row["decision"] == 0]
    last = [row for row in run.decisions if row["decision"] == 5]
    worth = sum(requirement[b["capability"]] * (a["after"] - b["before"]) for b, a in zip(first, last, strict=True))
    assert f"the scores have changed by {100 * worth:+.1f} points" in html
    matrix = dict(capability.matrix(run, NAMES))
    entry = next(row for row in run.transfer if (row["to"], row["by"]) == ("maths", "code"))
    assert matrix["maths"][0].mean == entry["mean"]
    assert matrix["maths"][0].high - entry["mean"] == pytest.approx(1.96 * entry["se"], rel=1e-3)


def test_headroom_and_regret_are_those_of_what_was_believed_and_done(tmp_path: Path) -> None:
    run = left_by(tmp_path, policy="gains", floor=0.0, protect={"top": 0, "beta": 0.0})
    (said,) = [sentence for sentence in capability.sentences(run) if sentence.startswith("Headroom")]
    tokens = np.array([row["realised_tokens"] for row in run.decisions]).reshape(-1, 3) / run.transfer[0]["tokens"]
    entries = {(row["to"], row["by"]): row for row in run.transfer}
    mean, se = (np.array([[entries[to, by][key] for by in NAMES] for to in NAMES]) for key in ("mean", "se"))
    start, r = np.array([row["before"] for row in run.decisions[:3]]), np.full(3, 1 / 3)
    back = hindsight(Transfer(mean, np.stack([np.diag(row**2) for row in se])), start, tokens, Aim(r, r))
    assert f"would have gained {100 * back.headroom[0]:+.1f} points" in said
    assert f"it would have gained {100 * back.regret[0]:+.1f} points" in said


def test_shares_are_planned_beside_realised(tmp_path: Path) -> None:
    run = left_by(tmp_path, policy="fixed", mix={"code": 0.2, "maths": 0.2, "words": 0.6})
    found = capability.of(run)
    assert found is not None
    chart = {name: chart for name, _, chart in found["charts"]}["capability-shares"]
    lines = {trace["name"]: trace for trace in chart["data"]}
    assert set(lines) == {*NAMES, *(f"{name}, realised" for name in NAMES)}
    assert lines["words"]["x"] == [1, 5, 9, 13, 17, 21]
    assert lines["words"]["y"] == pytest.approx([0.6] * 6)
    assert lines["words, realised"]["y"] == pytest.approx([0.6] * 6, abs=0.1)
    assert "up to 27 points from the requirement" in section(run)
    assert not found["matrix"], "fixed knows no transfer"
    scores = {name: chart for name, _, chart in found["charts"]}["capability-scores"]["data"]
    assert [trace["x"] for trace in scores] == [[1, 5, 9, 13, 17, 21, 25]] * 3


def test_one_decision_is_enough(tmp_path: Path) -> None:
    run = left_by(tmp_path, steps=EVERY + 1, end=False, policy="gains")
    html = section(run)
    assert "1 decision by the policy gains closed." in html
    assert 'id="capability-scores"' in html
    assert 'id="capability-reward"' not in html, "the first decision predicts nothing"
    assert "The planned shares were the requirement throughout." in html


def test_a_run_without_probes_says_so(tmp_path: Path) -> None:
    html = section(left_by(tmp_path, policy="uniform", probe=None, end=False))
    assert "There are no probes" in html
    assert 'id="capability-shares"' in html
    assert 'id="capability-scores"' not in html
    assert "nan" not in html.lower()


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    html = page.render([Run.read(Workshop(tmp_path).whole())])
    assert 'id="capabilities"' not in html
    assert "#capabilities" not in html
