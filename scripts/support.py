"""docs/support.md: which value of which setting the end-to-end tests ran, from what they recorded.

scripts/test.sh e2e && python scripts/support.py            # write the table
python scripts/support.py --check                           # it is what the last run of the tests would write
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf
from pydantic import BaseModel

from paced_verl.config import PacedConfig, StageConfig
from paced_verl.launch.hydra import compose
from paced_verl.names import TRAINER_MODES
from paced_verl.teacher.context import BUILTIN, TeacherContext

ROOT = Path(__file__).resolve().parents[1]
RECORD, TABLE = ROOT / "outputs" / "e2e" / "launches.jsonl", ROOT / "docs" / "support.md"

NEVER_ON_A_GPU = """
## What has never run on a GPU

Nothing here has: every launch above was on a CPU. These are the places where a GPU takes another way, and how far each
was looked at without one.

| on a GPU | looked at |
|---|---|
| Triton kernels of the divergence | values in Triton's interpreter; compiled for sm_80, sm_90, sm_100 |
| the whole-vocabulary divergence, `mm(out_dtype=float32)` | types and shapes, on tensors without numbers |
| chunks of 256 MiB instead of 4 MiB | sizes of chunks change no value, on a CPU |
| FSDP (1): `strategy: fsdp` | a teacher in the trainer's workers, two ranks of a CPU; launches run fsdp2 |
| offloading of parameters and of the optimizer | in a launch, where it moves nothing; not under FSDP (1) |
| NCCL for weight updates to servers (`separate_async`), and between ranks | gloo in its place |
| flash-attn, Ulysses sequence parallelism | the loss's slices for a rank, in unit tests |
| vLLM's CUDA engine, its sleep mode, tensor parallelism | vLLM's CPU engine, one process a server |
| bfloat16 training | float32 in the launches; the divergence in bfloat16 and float16, in unit tests |
"""
OTHERS = re.compile(r"\n<!-- scripts/check_examples.py -->.*", re.DOTALL)
"""The part of the document that another script writes."""

VERL_KEYS = [
    "trainer.v1.trainer_mode",
    "actor_rollout_ref.actor.strategy",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.use_dynamic_bsz",
    "actor_rollout_ref.model.use_remove_padding",
    "actor_rollout_ref.model.lora_rank",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "trainer.n_gpus_per_node",
    "distillation.distillation_loss.use_task_rewards",
    "actor_rollout_ref.actor.use_kl_loss",
    "algorithm.adv_estimator",
    "algorithm.filter_groups.enable",
    "algorithm.rollout_correction.rollout_is",
]
"""Settings of verl that decide which code of ours runs."""

UNREAD, BUT = "alignment.", "alignment.every_steps"
"""Of the block, but of no run; but for the key that has a run measure."""

MUST = {
    "trainer.v1.trainer_mode": set(TRAINER_MODES),
    "schedule.divergence": {"forward_kl", "reverse_kl", "jsd", "akl", "forward_kl_topk", "forward_kl → reverse_kl"},
    "teacher.context": {
        *(name for name in BUILTIN if TeacherContext(name).trains), "a file", "one a teacher", "by data source",
    },
    "actor_rollout_ref.actor.loss_agg_mode": {
        "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm",
    },
    "actor_rollout_ref.model.use_remove_padding": {"True", "False"},
    "actor_rollout_ref.actor.use_dynamic_bsz": {"True", "False"},
    "weight.kernel": {"beta", "hard_filter", "uniform"},
}  # fmt: skip
"""Values that some launch must have had, beside the alternatives that the configuration spells out itself."""


def alternatives(model: type[BaseModel], prefix: str = "") -> dict[str, set[str]]:
    """Every setting that is one of a few values, by its dotted name."""
    found: dict[str, set[str]] = {}
    for name, field in model.model_fields.items():
        nested = _blocks(field.annotation)
        if nested:
            found |= alternatives(nested[0], f"{prefix}{name}.")
        elif values := [value for part in (field.annotation, *get_args(field.annotation)) for value in _literals(part)]:
            found[f"{prefix}{name}"] = set(map(str, values))
    return found


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that a setting may be."""
    return [
        part for part in (annotation, *get_args(annotation)) if isinstance(part, type) and issubclass(part, BaseModel)
    ]


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def values_of(overrides: list[str], group: str) -> dict[str, list[str]]:
    """The settings of one launch."""
    config = compose([f"+paced={group}", *overrides])
    prefix, block = ("", config.paced) if "paced" in config else ("algorithm.paced.", config.algorithm.paced)
    block = OmegaConf.to_container(block, resolve=True)
    if not prefix:
        block = filled(block, PacedConfig)
    values = {
        f"{prefix}{name}": [shown(name, value)]
        for name, value in flat(block)
        if name == BUT or (name != "schedule" and not name.startswith(UNREAD))
    }
    for stage in block.get("schedule", []):
        for name in StageConfig.model_fields:
            if name in stage and name != "until":
                values.setdefault(f"schedule.{name}", []).append(shown(name, stage[name]))
    context = block.get("teacher", {}).get("context")
    if isinstance(context, dict) and "data_source" in context:
        each = [*context["data_source"].values(), context.get("others")]
        values["teacher.context"] += [shown("teacher.context", name) for name in each if name]
    for key in VERL_KEYS:
        values[key] = [str(OmegaConf.select(config, key))]
    return values


def filled(block: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """With the defaults of blocks that are null in the file and that an override sets, such as capability.

    They are not checked: a launch may have named files that are gone.
    """
    found = {name: field.get_default() for name, field in model.model_fields.items()} | block
    for name, value in found.items():
        nested = _blocks(model.model_fields[name].annotation) if name in model.model_fields else []
        if isinstance(value, BaseModel):
            found[name] = value.model_dump(mode="json")
        elif nested and isinstance(value, dict) and name != "context":
            found[name] = filled(value, nested[0])
    return found


def flat(block: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of a nested dict, contexts of several teachers as one value."""
    pairs: list[tuple[str, Any]] = []
    for name, value in block.items():
        nested = isinstance(value, dict) and name != "context"
        pairs += flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return pairs


def shown(name: str, value: Any) -> str:
    """A value as the table shows it: no paths, which differ from run to run."""
    if name.endswith("context") and isinstance(value, dict):
        return "by data source" if "data_source" in value else "one a teacher"
    if isinstance(value, dict):
        return f"{value['from']} → {value['to']}" if {"from", "to"} <= value.keys() else json.dumps(value)
    return "a file" if isinstance(value, str) and "/" in value else str(value)


def table(launches: list[dict[str, Any]]) -> str:
    """The document."""
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for launch in launches:
        for name, values in values_of(launch["overrides"], launch["group"]).items():
            for value in values:
                seen[name][value].add(launch["test"])
    missing = {
        name: sorted(values - seen[name].keys())
        for name, values in (alternatives(PacedConfig) | MUST).items()
        if not name.startswith(UNREAD) and values - seen[name].keys()
    }
    if missing:
        sys.exit(f"No end-to-end test ran: {missing}")
    lines = [
        "# What the end-to-end tests run",
        "",
        "Written by `scripts/support.py` from what `scripts/test.sh e2e` recorded: every value of every setting, and",
        "the tests (`tests/e2e`) that ran verl's real trainer with it. Keys without a prefix are of the `paced` block.",
        "",
        "| setting | value | tests |",
        "|---|---|---|",
    ]
    for name in sorted(seen, key=lambda name: (name in VERL_KEYS, name)):
        for value in sorted(seen[name]):
            tests = sorted(seen[name][value])
            few = ", ".join(f"`{test}`" for test in tests[:3]) + (
                f" and {len(tests) - 3} more" if len(tests) > 3 else ""
            )
            lines.append(f"| `{name}` | {value} | {few} |")
    return "\n".join(lines) + "\n" + NEVER_ON_A_GPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if docs/support.md says something else")
    check = parser.parse_args().check
    text = table([json.loads(line) for line in RECORD.read_text().splitlines()])
    text += "".join(OTHERS.findall(TABLE.read_text()))
    if not check:
        TABLE.write_text(text)
    elif TABLE.read_text() != text:
        sys.exit(f"{TABLE} is not what the tests ran: python scripts/support.py writes it anew.")


if __name__ == "__main__":
    main()
