"""What each rank of ``test_fsdp1`` runs: the teacher in the trainer's workers, under FSDP (1) on a CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from verl.workers.engine.fsdp import transformer_impl

from paced_verl.teacher.engine import ReferenceTeacher
from tests.teacher.test_engine import RESPONSES, TOPK, at_response, batch, config_of, log_probs_alone

Settings = dict[str, Any]


def on_a_cpu(module: torch.nn.Module, settings: Settings) -> Settings:
    """verl's settings of FSDP, less what wants a GPU: it sends the weights of rank 0 by itself, and offloads them."""
    if any(parameter.is_meta for parameter in module.parameters()):
        module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.data, 0)
    other = {"sync_module_states": False, "device_id": torch.device("cpu"), "cpu_offload": None, "param_init_fn": None}
    return settings | other


def patch() -> None:
    init = transformer_impl.FSDP.__init__

    def patched(self: Any, module: torch.nn.Module, *args: Any, **settings: Any) -> None:
        outer = settings.get("sync_module_states")  # FSDP wraps the layers by itself, with settings of ours
        init(self, module, *args, **(on_a_cpu(module, settings) if outer else settings))

    transformer_impl.FSDP.__init__ = patched


def assert_answers_as(teacher: ReferenceTeacher, path: Path) -> None:
    answer = teacher.answer(batch([1.0, 1.0, 1.0]))
    assert answer is not None
    for row in range(len(RESPONSES)):
        expected = log_probs_alone(path, row)
        ids, log_probs = (
            at_response(answer[name].unbind()[row], row).double() for name in ("teacher_ids", "teacher_logprobs")
        )
        torch.testing.assert_close(log_probs, expected.gather(1, ids.long()), atol=1e-5, rtol=0)
        torch.testing.assert_close(log_probs, expected.topk(TOPK).values, atol=1e-5, rtol=0)


def main(folder: Path) -> None:
    os.environ |= {"RAY_LOCAL_RANK": os.environ["RANK"], "VERL_ENGINE_DEVICE": "cuda"}
    patch()
    strategy = [f"actor_rollout_ref.{role}.strategy=fsdp" for role in ("ref", "actor")]
    config = config_of(folder, *strategy, "trainer.n_gpus_per_node=2")
    teacher = ReferenceTeacher(config, str(folder / "teacher"), TOPK)
    parameters = list(teacher.engine.module.parameters())
    assert (
        sum(p.numel() for p in parameters)
        < 0.6 * AutoModelForCausalLM.from_pretrained(folder / "teacher").num_parameters()
    )
    assert_answers_as(teacher, folder / "teacher")

    teacher.save(folder / "saved")
    teacher.follow(ReferenceTeacher(config, str(folder / "student"), TOPK).engine, decay=0.0)
    assert_answers_as(teacher, folder / "student")
    teacher.load(folder / "saved")
    assert_answers_as(teacher, folder / "teacher")

    whole = ReferenceTeacher(config, str(folder / "teacher"), "full")
    expected = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32).lm_head.weight
    for _ in range(2):  # before a forward pass, and after
        whole._head = None
        assert torch.equal(whole.head(), expected)
        assert whole.answer(batch([1.0, 1.0, 1.0])) is not None
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
