"""The sockets of runs that share a machine: verl names them alike, since every cluster's first job has one number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from verl.workers.rollout.vllm_rollout import utils, vllm_rollout

from paced_verl.training.sockets import RAYLET, apart, sender_apart


def ends(monkeypatch: pytest.MonkeyPatch, raylet: int) -> tuple[str, str]:
    """The names that a trainer's worker and a server of one node give to their socket, by verl's own code."""
    monkeypatch.setenv(RAYLET, str(raylet))
    monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")
    server: Any = SimpleNamespace(model_runner=None, local_rank=0)
    received = utils.vLLMColocateWorkerExtension._get_zmq_handle(server)

    class ServerAdapter:
        def __init__(self, rank: int):
            self.zmq_handle = f"ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-{rank}.sock"

    module: Any = SimpleNamespace(ServerAdapter=ServerAdapter)
    sender_apart(module)
    return ServerAdapter(0).zmq_handle, received


def test_two_runs_on_a_machine_have_sockets_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ends(monkeypatch, 2788), ends(monkeypatch, 2791)
    assert one[0] == one[1] == "ipc:///tmp/rl-colocate-zmq-2788-01000000-replica-0-rank-0.sock"
    assert two[0] == two[1] != one[0]


def test_both_of_verls_ends_are_changed() -> None:
    for function in (vllm_rollout.ServerAdapter.__init__, utils.vLLMColocateWorkerExtension._get_zmq_handle):
        assert hasattr(function, "__wrapped__"), function


def test_without_ray_a_socket_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAYLET, raising=False)
    assert apart("ipc:///tmp/rl-colocate-zmq-0-replica-0-rank-0.sock").endswith("zmq-0-replica-0-rank-0.sock")
