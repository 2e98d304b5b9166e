"""Which folder holds the weights of what a person calls a model: a Hugging Face folder, or a checkpoint of verl."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from paced_verl.evaluate import EvaluationError

SHARDS = "model_world_size_*_rank_*.pt"
MERGED = "merged"


def weights_folder(model: str) -> str:
    """A folder that transformers and vLLM can load, or the name of a model on the hub as it is.

    Args:
        model: A Hugging Face folder, ``global_step_N`` or ``global_step_N/actor`` of a verl run, or ``owner/name``.
            FSDP shards are merged once, by verl's own merger (which writes bfloat16), into ``actor/merged``.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no weights.
        EvaluationError: The shards cannot be merged, or hold a LoRA adapter.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not folder.parent.is_dir():
            return model
        raise FileNotFoundError(f"{model}: expected the folder of a model, but there is none.")
    actor = folder / "actor" if (folder / "actor").is_dir() else folder
    for candidate in (actor, actor / "huggingface"):
        if _has_weights(candidate):
            return str(candidate.resolve())
    if any(actor.glob(SHARDS)):
        return str(_merge(actor).resolve())
    steps = sorted(folder.glob("global_step_*"), key=lambda step: step.stat().st_mtime)
    hint = f" It holds several checkpoints: choose one, for example {steps[-1]}." if steps else ""
    raise FileNotFoundError(
        f"{model}: no weights. Expected config.json with *.safetensors or pytorch_model*.bin (Hugging Face), or "
        f"{SHARDS} (a verl FSDP checkpoint).{hint}"
    )


def _has_weights(folder: Path) -> bool:
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return (folder / "config.json").exists() and bool(weights)


def _merge(actor: Path) -> Path:
    """Merge the shards, unless that was done since they were written."""
    merged, unfinished = actor / MERGED, actor / f"{MERGED}.unfinished"
    written = max(shard.stat().st_mtime for shard in actor.glob(SHARDS))
    if not (_has_weights(merged) and (merged / "config.json").stat().st_mtime >= written):
        for old in (merged, unfinished):
            shutil.rmtree(old, ignore_errors=True)
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(actor), "--target_dir", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise EvaluationError(f"{actor}: verl's merger ended with code {done.returncode}:\n{tail}")
        os.replace(unfinished, merged)
    if (merged / "lora_adapter").is_dir():
        raise EvaluationError(
            f"{actor} was trained with LoRA: {merged} holds the weights before training, and the adapter is "
            "in its lora_adapter. Add the adapter to the weights (peft's merge_and_unload) and evaluate that folder."
        )
    return merged
