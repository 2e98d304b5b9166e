"""Promise 8: installed and unused, the plugin costs nothing and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPOSE = """
import json, verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
with initialize_config_module("verl.trainer.config", version_base=None):
    print("CONFIG" + json.dumps(OmegaConf.to_container(compose("ppo_trainer"), resolve=False), sort_keys=True))
"""
LOADED = """
import json, sys, verl
heavy = ("paced_verl", "hydra.", "vllm", "verl.trainer.ppo")
print("CONFIG" + json.dumps(sorted(m for m in sys.modules if m.startswith(heavy))))
"""


def run(code: str, plugins: str) -> object:
    environment = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"} | {"VERL_USE_EXTERNAL_PLUGINS": plugins}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rsplit("CONFIG", 1)[1])


def test_verls_configuration_is_the_same_with_and_without_the_plugin() -> None:
    assert run(COMPOSE, "auto") == run(COMPOSE, "none")


def test_a_process_that_only_imports_verl_imports_nothing_more() -> None:
    assert run(LOADED, "auto") == ["paced_verl", *run(LOADED, "none")]


@pytest.mark.parametrize("name", ["paced_sync", "paced_colocate_async", "paced_separate_async"])
def test_the_trainer_is_registered_when_verl_looks_for_it(name: str) -> None:
    from verl.trainer.ppo.v1 import PPOTrainer, get_trainer_cls

    assert issubclass(get_trainer_cls(name), PPOTrainer)


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name in ("paced_verl.pacing.sampler", "paced_verl.divergence"):
            raise ImportError(f"{name} is broken")
sys.meta_path.insert(0, Broken())
"""


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment where modules that trainer and loss import do not load."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "VERL_PLATFORM": "cpu"}


def test_a_broken_plugin_is_said_and_ends_no_run_that_does_not_use_it(broken: dict[str, str]) -> None:
    code = "from verl.trainer.ppo.v1 import get_trainer_cls; import verl.workers.engine_workers\n"
    code += "print(get_trainer_cls('sync'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=broken, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "PPOTrainerSync" in result.stdout
    said = [line for line in result.stderr.splitlines() if line.startswith("paced-verl is installed but does not load")]
    assert any("ImportError: paced_verl.pacing.sampler is broken" in line for line in said)
    assert len(said) == len(set(said))


def test_a_broken_plugin_ends_a_run_that_uses_it_before_ray(broken: dict[str, str]) -> None:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+paced=two_stage", "+machine=cpu"]
    result = subprocess.run(command, capture_output=True, text=True, env=broken, timeout=120)
    assert result.returncode != 0
    assert "paced-verl: this configuration could not be checked: ImportError: paced_verl." in result.stderr
    assert "is broken" in result.stderr.split("could not be checked")[1]
    assert "ray init" not in result.stdout
