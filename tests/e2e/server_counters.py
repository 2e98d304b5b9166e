"""Loaded by ``VERL_USE_EXTERNAL_MODULES``: notes what the servers themselves have counted whenever a step is logged."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import wrapt

FILE = "SERVER_COUNTERS"
"""Environment variable: the file to write a line a step to."""


def read(address: str) -> dict[str, float]:
    """vLLM's counters of a server: tokens of prompts and of answers since it started."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for part, name in (("prompt", "prompt_tokens_total"), ("generated", "generation_tokens_total")):
        found[part] = sum(float(value) for value in re.findall(rf"^vllm:{name}{{.*}} (\S+)$", text, re.MULTILINE))
    return found


def note(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    counters = {name: read(address) for name, address in instance._addresses().items()}
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps({"step": instance.global_steps, "counters": counters}) + "\n")
    return result


if FILE in os.environ:
    wrapt.register_post_import_hook(
        lambda module: wrapt.wrap_function_wrapper(module, "PacedTrainer._compute_metrics", note),
        "paced_verl.training.trainer",
    )
