"""Sockets by which the trainer hands weights to a vLLM server of its node, apart for runs that share the machine.

verl tells them apart by Ray's job id, which is 01000000 in every cluster that a run starts for itself: two runs on one
machine meet in one socket. Then one hands its weights to the other's server where their steps coincide, or both wait
for ever. A node's raylet is one cluster's alone, and both ends of a socket know its process id.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import wrapt

RAYLET = "RAY_RAYLET_PID"
"""Ray's, in the environment of its workers and what they start."""
_PREFIX = "rl-colocate-zmq-"


def apart(handle: str) -> str:
    """verl's socket with the node's raylet in its name; as it is where there is none."""
    raylet = os.environ.get(RAYLET)
    return handle if raylet is None else handle.replace(_PREFIX, f"{_PREFIX}{raylet}-", 1)


def sender_apart(module: ModuleType) -> None:
    """The trainer's end: ``ServerAdapter`` of ``verl.workers.rollout.vllm_rollout.vllm_rollout``."""

    def init(wrapped: Any, adapter: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        adapter.zmq_handle = apart(adapter.zmq_handle)

    wrapt.wrap_function_wrapper(module, "ServerAdapter.__init__", init)


def receiver_apart(module: ModuleType) -> None:
    """The server's end: ``vLLMColocateWorkerExtension`` of ``verl.workers.rollout.vllm_rollout.utils``."""

    def handle(wrapped: Any, _extension: Any, args: Any, kwargs: Any) -> str:
        return apart(wrapped(*args, **kwargs))

    wrapt.wrap_function_wrapper(module, "vLLMColocateWorkerExtension._get_zmq_handle", handle)
