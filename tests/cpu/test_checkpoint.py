"""The checkpoint engine of CPU machines: processes of its own, led as verl's ``CheckpointEngineManager`` leads them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from verl.checkpoint_engine.base import CheckpointEngineManager
from verl.utils.config import omega_conf_to_dataclass

from paced_verl.cpu.checkpoint import GlooCheckpointEngine
from paced_verl.launch.hydra import compose

BUCKET = 1024  # bytes; all tensors together are fifty times as large, some are by themselves
ACTORS, ROLLOUTS, UPDATES = 2, 2, 2


def weights(update: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(update)
    large = torch.randn(300, 41, generator=generator)
    return {f"layers.{i}": torch.randn(7, i + 1, generator=generator) for i in range(20)} | {
        "large": large,
        "large in bfloat16": large.bfloat16(),
        "odd length in bfloat16": torch.randn(3, generator=generator).bfloat16(),
        "transposed": large.T,
        "view": large[5:9, 3],
        "scalar": torch.tensor(float(update)),
        "int64": torch.arange(5) - update,
        "bool": torch.tensor([True, False]),
        "special": torch.tensor([math.nan, -math.inf, 1e-45]),
    }


def run_worker(index: int, manager: Connection, folder: Path) -> None:
    torch.set_num_threads(1)
    is_actor = index < ACTORS
    engine = GlooCheckpointEngine(BUCKET, is_master=index == 0)
    for update in range(UPDATES):
        manager.send(engine.prepare())
        engine.init_process_group(**manager.recv())
        manager.send(asyncio.run((send if is_actor else receive)(engine, update, folder / f"{update}-{index}.pt")))
        engine.finalize()


async def send(engine: GlooCheckpointEngine, update: int, _path: Path) -> list[str]:
    taken = []

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights(update).items():
            taken.append(name)
            yield name, tensor

    assert await engine.send_weights(gather(), global_steps=update) == {}
    return taken


async def receive(engine: GlooCheckpointEngine, update: int, path: Path) -> list[str]:
    received = dict([item async for item in engine.receive_weights(global_steps=update)])
    torch.save(received, path)
    return list(received)


def answer(connection: Connection) -> Any:
    assert connection.poll(60), "a worker does not answer"
    return connection.recv()


def test_every_rollout_worker_gets_the_weights_exactly_at_every_update(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(ACTORS + ROLLOUTS)]
    processes = [
        context.Process(target=run_worker, args=(i, theirs, tmp_path), daemon=True)
        for i, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    workers = [ours for ours, _ in pipes]
    for update in range(UPDATES):
        metadata = [answer(worker) for worker in workers]
        arguments = GlooCheckpointEngine.build_topology(ACTORS, ROLLOUTS, metadata)
        # A list of values for each argument, one value for each worker, as CheckpointEngineManager hands them out.
        own = [
            dict(zip(side, values, strict=True)) for side in arguments for values in zip(*side.values(), strict=True)
        ]
        for worker, keywords in zip(workers, own, strict=True):
            worker.send(keywords)
        names = [answer(worker) for worker in workers]
        sent = weights(update)
        # The trainer's second rank sends nothing, but has to take part in gathering every tensor.
        assert names == [list(sent)] * (ACTORS + ROLLOUTS)
        for index in range(ACTORS, ACTORS + ROLLOUTS):
            received = torch.load(tmp_path / f"{update}-{index}.pt")
            for name, tensor in sent.items():
                torch.testing.assert_close(received[name], tensor, rtol=0, atol=0, equal_nan=True)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_the_saved_policy_stays_when_the_trained_one_goes_on() -> None:
    from verl.utils.fsdp_utils import fsdp2_sharded_load_from_cpu, fsdp2_sharded_save_to_cpu

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(3, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        before = model.weight.full_tensor().clone()
        saved = fsdp2_sharded_save_to_cpu(model)
        with torch.no_grad():
            model.weight.add_(1)
        assert not torch.equal(model.weight.full_tensor(), before)
        fsdp2_sharded_load_from_cpu(model, *saved)
        assert torch.equal(model.weight.full_tensor(), before)
    finally:
        dist.destroy_process_group()


def test_the_machine_group_names_the_engine_and_has_room_for_every_pool() -> None:
    config = compose(["+paced=two_stage", "+machine=cpu_separate"])
    rollout = config.actor_rollout_ref.rollout
    engine = omega_conf_to_dataclass(rollout.checkpoint_engine)
    assert CheckpointEngineManager(engine, actor_wg=None, replicas=[]).backend_cls is GlooCheckpointEngine
    assert engine.custom_backend_module == GlooCheckpointEngine.__module__, "so that workers import it"
    pools = [config.trainer, rollout, config.distillation]
    assert config.ray_kwargs.ray_init.num_gpus == sum(pool.nnodes * pool.n_gpus_per_node for pool in pools)
