"""What a user installs: the wheel, used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import paced_verl
from tests.e2e.conftest import ROOT

CODE = """
import paced_verl, hydra_plugins.paced_verl_search_path as hydra_side
from paced_verl.launch.doctor import examine
from paced_verl.launch.hydra import compose
print(paced_verl.__file__, hydra_side.__file__, sep="\\n")
print(compose(["+paced=two_stage", "+machine=cpu"]).paced.weight.kernel)
print([finding.what for finding in examine() if not finding.ok])
"""


def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob(f"paced_verl-{paced_verl.__version__}-*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True, timeout=300)
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "hydra_plugins/paced_verl_search_path.py",
        "paced_verl/configs/paced/two_stage.yaml",
        "paced_verl/configs/machine/cpu.yaml",
        "paced_verl/teacher/templates/solution.jinja",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests", "scripts", "examples"))]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    package, hydra_side, kernel, wrong = done.stdout.strip().splitlines()[-4:]
    assert Path(package).is_relative_to(installed)
    assert Path(hydra_side).is_relative_to(installed)
    assert (kernel, wrong) == ("beta", "[]")
