from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from paced_verl.evaluate.models import weights_folder


def hugging_face(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    return folder


def checkpoint(run: Path, step: int) -> Path:
    """What verl leaves: shards, and beside them a configuration without weights."""
    actor = run / f"global_step_{step}" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"w")
    return actor.parent


def test_a_folder_with_weights_is_itself(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "model")
    assert weights_folder(str(folder)) == str(folder)


def test_weights_that_verl_saved_beside_its_shards_are_used(tmp_path: Path) -> None:
    step = checkpoint(tmp_path, 7)
    (step / "actor" / "huggingface" / "model-00001-of-00002.safetensors").write_bytes(b"w")
    for given in (step, step / "actor"):
        assert weights_folder(str(given)) == str(step / "actor" / "huggingface")


def test_shards_are_merged_once_and_again_when_they_are_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = []

    def merger(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        merges.append(command)
        hugging_face(Path(command[command.index("--target_dir") + 1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", merger)
    step = checkpoint(tmp_path, 7)
    merged = str(step / "actor" / "merged")
    assert [weights_folder(str(step)), weights_folder(str(step / "actor"))] == [merged, merged]
    assert len(merges) == 1
    assert not (step / "actor" / "merged.unfinished").exists()
    later = os.stat(step / "actor" / "merged" / "config.json").st_mtime + 10
    os.utime(step / "actor" / "model_world_size_1_rank_0.pt", (later, later))
    weights_folder(str(step))
    assert len(merges) == 2


def test_an_adapter_beside_the_weights_is_not_overlooked(tmp_path: Path) -> None:
    step = checkpoint(tmp_path, 7)
    hugging_face(step / "actor" / "merged")
    (step / "actor" / "merged" / "lora_adapter").mkdir()
    with pytest.raises(ValueError, match="LoRA"):
        weights_folder(str(step))


def test_shards_that_do_not_merge_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="config: …\n", stderr="FileNotFoundError: fsdp_config.json\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    step = checkpoint(tmp_path, 7)
    with pytest.raises(ValueError, match=r"(?s)merger ended with code 1:.*fsdp_config.json"):
        weights_folder(str(step))
    assert not (step / "actor" / "merged").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is none"):
        weights_folder(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="no weights"):
        weights_folder(str(tmp_path))
    checkpoint(tmp_path, 60)
    newest = checkpoint(tmp_path, 120)
    os.utime(newest, (4e9, 4e9))
    with pytest.raises(FileNotFoundError, match=r"several checkpoints.*global_step_120"):
        weights_folder(str(tmp_path))


def test_a_name_on_the_hub_is_left_to_who_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights_folder("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError):
        weights_folder("runs/student")
