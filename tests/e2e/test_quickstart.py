"""The quickstart, small: its runs, a page and a summary with everything it promises, a picture; killed, it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import ROOT

TIMEOUT = 900


def command(recipe: str, out: Path, *more: str) -> list[str]:
    script = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--preset", "test", "--steps", "4"]
    return [*script, "--recipe", recipe, "--out", str(out), *more]


def kill_after_the_first_checkpoint(recipe: str, out: Path) -> None:
    """Kill nothing but the quickstart itself, as the kernel or a closed terminal may: its run must end with it.

    A step is logged after its checkpoint; what it measured is known to the page only then.
    """
    logged = out / "paced" / "metrics-0.jsonl"
    deadline = time.monotonic() + TIMEOUT
    process = subprocess.Popen(command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (logged.exists() and '"step":1,' in logged.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Ray's own agents look for their parent every few minutes; they hold nothing of the run.
    agents = ("DashboardAgent", "RuntimeEnvAgent")
    children = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.name().endswith(agents)]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.mark.parametrize(("recipe", "stages"), [("two_stage", 2), ("self_distillation", 1)])
def test_the_quickstart_leaves_a_page_a_summary_and_a_picture(recipe: str, stages: int, tmp_path: Path) -> None:
    """Two stages are killed once: 48 of the file's 64 prompts, drawn without a seed, are the same when they resume."""
    compared = recipe == "two_stage"
    if compared:
        kill_after_the_first_checkpoint(recipe, tmp_path)
    script = command(recipe, tmp_path, "--keep-going", *([] if compared else ["--no-compare"]))
    done = subprocess.run(script, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ("Resuming from" in (tmp_path / "paced" / "run.log").read_text()) == compared
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["runs"]) == (["paced", "uniform"] if compared else ["paced"])
    assert {name: [each["at_equal"] for each in found] for name, found in summary["paced minus"].items()} == (
        {"uniform": ["steps", "tokens"]} if compared else {}
    )
    run = summary["runs"]["paced"]
    moments = {"before", "between", "after"} if stages == 2 else {"before", "after"}
    assert set(run["accuracy"]) == moments | {"intervals", "gain", "problems", "samples_per_problem", "by_step"}
    assert all(0 <= run["accuracy"][when] <= 1 for when in moments)
    known = [sum(bins) for bins in run["pass_rate_histograms"].values()]
    assert known == [48] * 4, "two batches ahead is all there is"
    assert run["tokens"]["paced/tokens/estimate/generated"] > 0
    assert list(run["stages"]) == ["1", "2"][:stages]
    assert run["stages"]["1"]["reverse_kl_first"] > 0, "the student's own weights say more when they see the solution"
    assert run["teacher_tokens"] > 0
    assert (tmp_path / "models" / "teacher").exists() == (recipe == "two_stage")
    assert 0 < summary["teacher"]["accuracy"] <= 1
    assert {"environment", "task and models", "run paced", "total"} <= set(summary["seconds"])
    assert summary["versions"]["verl"] == "0.9.1"
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in summary["runs"])
    assert "Held-out accuracy" in done.stdout
    assert f"teacher: {summary['teacher']['model']}, accuracy {summary['teacher']['accuracy']:.3f}" in done.stdout

    again = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, "what is there is used again"
    assert json.loads((tmp_path / "summary.json").read_text())["runs"]["paced"] == run
