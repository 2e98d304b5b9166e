"""The quickstart, small: one run, a summary with everything it promises, a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROOT


def test_the_quickstart_leaves_a_summary_and_a_picture(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--preset", "test", "--steps", "4"]
    done = subprocess.run([*script, "--out", str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    run = summary["paced"]
    assert set(run["accuracy"]) >= {"before", "between", "after", "problems", "samples_per_problem"}
    assert all(0 <= run["accuracy"][when] <= 1 for when in ("before", "between", "after"))
    assert [sum(bins) for bins in run["pass_rate_histograms"].values()] == [64, 64, 64], "before, at the switch, after"
    assert list(run["stages"]) == ["1", "2"]
    assert run["teacher_tokens"] > 0
    assert {"environment", "task and models", "run paced", "total"} <= set(summary["seconds"])
    assert summary["versions"]["verl"] == "0.9.1"
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert "Held-out accuracy" in done.stdout

    again = subprocess.run([*script, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, "what is there is used again"
    assert json.loads((tmp_path / "summary.json").read_text())["paced"] == run
