"""verl's checkpoint engine ``gloo``: weights from the trainer to rollout servers that do not share its processes.

``trainer.v1.trainer_mode=separate_async`` wants a checkpoint engine other than ``naive``; verl's own need NCCL, NIXL or
a vendor's library. This one is meant for a single CPU machine, for tests and teaching, with models of a few million
parameters: the trainer's rank 0 broadcasts one tensor after the other, and nothing overlaps with anything.

``actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module`` names this module, so that verl imports it
wherever it looks the engine up (``configs/machine/cpu_separate.yaml``).
"""

import pickle
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import ray
import torch
import torch.distributed as dist
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """One process group a weight update: the trainer's rank 0, then every rollout worker.

    verl calls, in every process and for every update: ``prepare``, ``init_process_group`` with what ``build_topology``
    returned, ``send_weights`` or ``receive_weights``, ``finalize`` (``CheckpointEngineManager.update_weights``).

    Args:
        bucket_size: verl's, in bytes. Not used: a tensor travels by itself, whatever its size.
        is_master: Whether this is the trainer's rank 0.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self._is_master = is_master
        self._store: dist.TCPStore | None = None
        self._group: dist.ProcessGroupGloo | None = None

    def prepare(self) -> tuple[str, int] | None:  # type: ignore[override]  # whatever build_topology reads
        """The master's (host, port), where the others meet it; None from all others."""
        if not self._is_master:
            return None
        host = ray.util.get_node_ip_address().strip("[]")
        self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """``init_process_group``'s arguments, a value a process: the trainer's rank 0 is 0, its other ranks are -1."""
        world_size = 1 + rollout_world_size

        def arguments(ranks: list[int]) -> dict[str, list[Any]]:
            return {"rank": ranks, "world_size": [world_size] * len(ranks), "address": [metadata[0]] * len(ranks)}

        return arguments([0] + [-1] * (actor_wg_world_size - 1)), arguments(list(range(1, world_size)))

    def init_process_group(  # type: ignore[override]  # its keywords are build_topology's
        self, rank: int, world_size: int, address: tuple[str, int]
    ) -> None:
        """Join the group; returns when all have. Rank -1 stays outside."""
        if rank < 0:
            return
        store = self._store or dist.TCPStore(*address)
        # Not dist.init_process_group: verl's workers have a default group already, each side its own.
        self._group = dist.ProcessGroupGloo(store, rank, world_size)  # type: ignore[call-arg]

    def finalize(self) -> None:
        self._group = self._store = None

    @torch.no_grad()
    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, Any]:
        """Broadcast every tensor, bit by bit as it is. Every rank of the trainer must call this.

        Args:
            weights: Full tensors by name, any dtype; taking one may be a collective of the trainer's ranks.
            global_steps: verl's, not used.

        Returns:
            verl's metrics of the update: none.
        """
        for name, tensor in weights:
            if self._is_master:
                self._send((name, tensor.shape, tensor.dtype))
                self._broadcast(_bytes(tensor.contiguous()))
        if self._is_master:
            self._send(None)
        return {}

    @torch.no_grad()
    async def receive_weights(  # type: ignore[override]  # verl iterates over it with "async for"
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yields (name, tensor) in the order sent, every tensor in memory of its own."""
        while (header := self._receive()) is not None:
            name, shape, dtype = header
            tensor = torch.empty(shape, dtype=dtype)
            self._broadcast(_bytes(tensor))
            yield name, tensor

    def _send(self, header: Any) -> None:
        data = torch.frombuffer(bytearray(pickle.dumps(header)), dtype=torch.uint8)
        self._broadcast(torch.tensor(data.numel()))
        self._broadcast(data)

    def _receive(self) -> Any:
        size = torch.tensor(0)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        return pickle.loads(data.numpy().tobytes())

    def _broadcast(self, tensor: torch.Tensor) -> None:
        assert self._group is not None, "init_process_group comes first"
        self._group.broadcast(tensor, 0).wait()  # type: ignore[attr-defined]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory, (bytes,): gloo does not know every dtype."""
    return tensor.view(-1).view(torch.uint8)
