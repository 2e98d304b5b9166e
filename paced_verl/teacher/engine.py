"""The teacher as a forward-only engine in the trainer's own workers: no vLLM, no GPU of its own, offloadable.

It is verl's reference worker with another model: its settings are those under ``actor_rollout_ref.ref``. It answers
when a step's rows are complete, with the fields that a teacher server would have filled (top-k ids and their
log-probabilities at the student's positions), or, for the exact divergence, with its last hidden states, from which the
loss computes its logits again chunk by chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from paced_verl import fields
from paced_verl.teacher.positions import at_student_positions, response_positions, top_k

MODEL_TYPE = "paced_teacher"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class TeacherEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine, whose output is a summary of the logits instead of log-probabilities."""

    summarise: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    """(tokens, width) of what the model's head returns → jagged fields (tokens, …) by name."""

    def _build_module(self) -> torch.nn.Module:
        self.model_config.model_type = "language_model"  # verl knows how to build one of those
        return super()._build_module()

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Fields of every token, jagged as ``input_ids``."""
        offsets = micro_batch["input_ids"].offsets()
        logits = output.logits.full_tensor() if isinstance(output.logits, DTensor) else output.logits
        if tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=True):
            summary = {
                name: self._gather_and_unpad_packed(value, output_args["pad_size"])
                for name, value in self.summarise(logits.squeeze(0)).items()
            }
        else:
            rows = zip(logits, offsets.diff().tolist(), strict=True)
            summary = self.summarise(torch.cat([row[:length] for row, length in rows]))
        return {
            name: torch.nested.nested_tensor_from_jagged(value.contiguous(), offsets) for name, value in summary.items()
        }


class ReferenceTeacher:
    """A teacher in a trainer worker.

    Args:
        config: verl's ``actor_rollout_ref``, before verl's worker has read it (it takes keys out of ``ref``).
        model_path: The teacher's model; its engine, lengths and offloading are those of ``actor_rollout_ref.ref``.
        topk: Tokens of its distribution, or ``full``.
    """

    def __init__(self, config: DictConfig, model_path: str, topk: int | str):
        config = copy.deepcopy(config)
        with open_dict(config):
            config.model.path = model_path
            config.model.tokenizer_path = None
            config.model.hf_config_path = None
            config.model.model_type = MODEL_TYPE
            config.model.lora_rank = 0
            config.model.lora_adapter_path = None
            config.ref.pop("teacher_path", None)  # another teacher's, of paced_verl.advantage.install
        worker = ActorRolloutRefWorker(config, role="ref")
        worker.init_model()
        assert isinstance(worker.ref, TrainingWorker)
        self.worker = worker.ref
        self.topk = topk
        self._head: torch.Tensor | None = None
        if topk == "full":
            # The head is applied in the loss: here the model's "logits" are the hidden states it would be applied to.
            self._output_layer.forward = lambda hidden: hidden
            self.engine.summarise = lambda hidden: {"teacher_hidden": hidden}
        else:
            self.engine.summarise = lambda logits: top_k(logits, int(topk))

    @property
    def engine(self) -> TeacherEngine:
        """Its engine."""
        return cast(TeacherEngine, self.worker.engine)

    @property
    def _output_layer(self) -> torch.nn.Module:
        return cast(Any, self.engine.module).get_output_embeddings()

    def head(self) -> torch.Tensor:
        """(V, hidden) weight of the output layer, whole on every rank, on the device, in the dtype it computes in."""
        if self._head is None:
            with self.engine.eval_mode(), torch.no_grad(), self._whole_output_layer():
                weight = cast(torch.Tensor, self._output_layer.weight)
                # verl keeps forward-only parameters on the CPU, in the dtype of the files.
                weight = weight.to(get_device_id(), self.engine._autocast_dtype)
                self._head = (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()
        return self._head

    def _whole_output_layer(self) -> AbstractContextManager:
        """Within it the output layer has its weight. FSDP (1) has freed it; FSDP2's can gather itself."""
        root = self.engine.module
        if not isinstance(root, FullyShardedDataParallel):
            return nullcontext()
        inner = [unit for unit in FullyShardedDataParallel.fsdp_modules(root) if unit is not root]
        inside = any(self._output_layer in unit.modules() for unit in inner)  # gather no more than needed: the root
        return FullyShardedDataParallel.summon_full_params(root, recurse=inside, writeback=False)

    def answer(self, data: TensorDict) -> TensorDict | None:
        """The teacher's fields of a batch, at the student's positions; rows that train nothing are not computed.

        Args:
            data: With ``prompts``, ``responses``, ``response_mask``, ``TEACHER_PROMPT`` (jagged) and ``WEIGHT``.

        Returns:
            What :func:`top_k` gives, or ``teacher_hidden``: jagged (B, tokens, …). ``None`` on ranks that share their
            rows with another rank of a sequence-parallel group.
        """
        prompts, responses = data[fields.TEACHER_PROMPT].unbind(), data["responses"].unbind()
        weight = fields.per_row(data[fields.WEIGHT]).view(-1)
        trains = [bool(w > 0 and mask.any()) for w, mask in zip(weight, data["response_mask"].unbind(), strict=True)]
        asked = self._same_number_everywhere(trains)
        if self.topk == "full":
            self.head()  # here, where all ranks meet: the loss asks for it rank by rank
        answers: dict[int, dict[str, torch.Tensor]] = {}
        if asked:
            output = self.worker.infer_batch(_batch([torch.cat([prompts[i], responses[i]]) for i in asked]))
            if output is None:
                return None
            names = ("teacher_hidden",) if self.topk == "full" else ("teacher_ids", "teacher_logprobs", "teacher_tail")
            columns = [output[name].unbind() for name in names]
            for row, values in zip(asked, zip(*columns, strict=True), strict=True):
                place = response_positions(len(values[0]), len(responses[row]))
                answers[row] = {name: value[place] for name, value in zip(names, values, strict=True)}
        return self._at_student_positions(data, answers)

    def _same_number_everywhere(self, trains: list[bool]) -> list[int]:
        """The rows that train, and as many others as make every rank compute equally many, since FSDP works in step, in
        whole micro-batches where their size is fixed; a row twice where there are not so many."""
        most = torch.tensor(sum(trains), device=get_device_id())
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self.engine.get_data_parallel_group())
        order = sorted(range(len(trains)), key=lambda row: not trains[row])
        settings = self.worker.engine_config
        size = 1 if settings.use_dynamic_bsz else settings.infer_micro_batch_size_per_gpu
        return [order[i % len(order)] for i in range(-(-int(most) // size) * size)]

    def _at_student_positions(self, data: TensorDict, answers: dict[int, dict[str, torch.Tensor]]) -> TensorDict:
        prompt_lengths, lengths = data["prompts"].offsets().diff().tolist(), data["responses"].offsets().diff().tolist()
        rows: dict[str, list[torch.Tensor]] = {}
        for i, (prompt_length, length) in enumerate(zip(prompt_lengths, lengths, strict=True)):
            answer, total = answers.get(i), prompt_length + length
            if self.topk == "full":
                hidden = torch.zeros(total, self.head().shape[1], dtype=self.engine._autocast_dtype)
                if answer is not None:
                    hidden[response_positions(total, length)] = answer["teacher_hidden"].to(hidden.dtype)
                values = {"teacher_hidden": hidden}
            else:
                response = None if answer is None else (answer["teacher_ids"], answer["teacher_logprobs"])
                ids, log_probs = at_student_positions(response, total, length, int(self.topk))
                tail = torch.full((total,), -torch.inf)
                if answer is not None:
                    tail[response_positions(total, length)] = answer["teacher_tail"]
                values = {"teacher_ids": ids, "teacher_logprobs": log_probs, "teacher_tail": tail}
            for name, value in values.items():
                rows.setdefault(name, []).append(value)
        return TensorDict({name: _jagged(values) for name, values in rows.items()}, batch_size=len(lengths))

    def follow(self, student: FSDPEngineWithLMHead, decay: float) -> None:
        """teacher ← decay · teacher + (1 − decay) · student, shard by shard. 0 copies the student."""
        for engine in (self.engine, student):
            _reshard(engine.module)
        with torch.no_grad():
            for mine, theirs in zip(self.engine.module.parameters(), student.module.parameters(), strict=True):
                mine, theirs = _local(mine), _local(theirs)
                mine.lerp_(theirs.to(mine.device, mine.dtype), 1 - decay)
        self._head = None

    def save(self, folder: Path) -> None:
        """Write this rank's shard."""
        folder.mkdir(parents=True, exist_ok=True)
        _reshard(self.engine.module)
        torch.save([_local(parameter).cpu() for parameter in self.engine.module.parameters()], folder / _shard())

    def load(self, folder: Path) -> None:
        """Read this rank's shard.

        Raises:
            FileNotFoundError: The run had another number of ranks.
        """
        _reshard(self.engine.module)
        with torch.no_grad():
            saved = torch.load(folder / _shard(), map_location="cpu")
            for parameter, value in zip(self.engine.module.parameters(), saved, strict=True):
                _local(parameter).copy_(value)
        self._head = None


def _batch(sequences: list[torch.Tensor]) -> TensorDict:
    """Sequences as verl's engines take them."""
    positions = [torch.arange(len(sequence), device=sequence.device) for sequence in sequences]
    tensors = {
        "input_ids": _jagged(sequences),
        "position_ids": _jagged(positions),
        "loss_mask": _jagged([torch.ones_like(position) for position in positions]),
    }
    batch = TensorDict(tensors, batch_size=len(sequences))
    tu.assign_non_tensor(batch, temperature=1.0, compute_loss=False, calculate_entropy=False)
    return batch


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _reshard(module: torch.nn.Module) -> None:
    # FSDP leaves the root's parameters gathered after a forward pass, and computes the next with them.
    if isinstance(module, FSDPModule):
        module.reshard()
    elif isinstance(module, FullyShardedDataParallel):
        handle = module._handle
        if module._is_root and handle and handle.uses_sharded_strategy:  # _is_root: it has run
            handle.reshard(True)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.data


def _shard() -> str:
    return f"rank_{torch.distributed.get_rank()}_of_{torch.distributed.get_world_size()}.pt"
