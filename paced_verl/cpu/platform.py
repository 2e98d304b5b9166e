"""verl's platform ``cpu``: the whole stack (Ray, FSDP2 on gloo, vLLM CPU servers) on a machine without a GPU.

Imported only where ``VERL_PLATFORM=cpu`` is set. It is meant for tests, continuous integration, teaching and the
quickstart, with models of a few million parameters. Everything that is not a plain platform method is a
compatibility fix, and says what breaks without it.
"""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
import wrapt
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

_ENVIRONMENT = {
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu only
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB a server; the default takes half of the machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers share the cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less a server
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait cost a factor of 2 to 4 on shared cores
    "TQ_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "DO_NOT_TRACK": "1",
    # Ray hides accelerators from actors that hold none, by variables that mean nothing here.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


def _device_module() -> ModuleType:
    """``torch.cpu`` plus the names verl calls on ``torch.cuda``: caches that do nothing, memory of the process."""
    module = ModuleType("torch.cpu (verl)")
    module.__dict__.update(torch.cpu.__dict__)

    def resident_bytes(*_: Any) -> int:
        return psutil.Process().memory_info().rss

    def mem_get_info(*_: Any) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    module.__dict__.update(
        device_count=lambda: 1,
        empty_cache=lambda: None,
        ipc_collect=lambda: None,
        reset_peak_memory_stats=lambda *_: None,
        memory_allocated=resident_bytes,
        memory_reserved=resident_bytes,
        max_memory_allocated=resident_bytes,
        max_memory_reserved=resident_bytes,
        mem_get_info=mem_get_info,
        get_device_name=lambda *_: "cpu",
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
    )
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """CPU platform: gloo collectives, weights to vLLM through shared memory, Ray's ``GPU`` resource as slots."""

    _module = _device_module()

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never chosen by detection, only by VERL_PLATFORM=cpu

    def current_device(self) -> str:  # type: ignore[override]  # torch's .to() takes it as it takes an index
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def cudart(self) -> Any:
        return None


# verl names the backend "cpu:gloo,<device>:<backend>", here "cpu:gloo,cpu:gloo", which torch rejects as a duplicate.
@wrapt.patch_function_wrapper("torch.distributed", "init_process_group")
def _single_gloo(wrapped: Any, _instance: Any, args: tuple, kwargs: dict) -> Any:
    if kwargs.get("backend") == "cpu:gloo,cpu:gloo":
        kwargs["backend"] = "cpu:gloo"
    return wrapped(*args, **kwargs)


# The CPU build of vLLM is the distribution "vllm-cpu"; verl and transformers ask for the version of "vllm", and vLLM
# itself takes "cpu" in that version for the sign of a CPU build.
@wrapt.patch_function_wrapper(importlib.metadata, "version")
def _vllm_version(wrapped: Any, _instance: Any, args: tuple, kwargs: dict) -> str:
    try:
        return wrapped(*args, **kwargs)
    except importlib.metadata.PackageNotFoundError:
        if args == ("vllm",):
            return wrapped("vllm-cpu") + "+cpu"
        raise


# vLLM's CPU linear layers pack their weights and drop the originals, so the first weight update from the trainer fails
# ('Parameter' object has no attribute 'weight_loader') and the run hangs: keep the plain weights and use plain linear.
@wrapt.when_imported("vllm.model_executor.layers.utils")
def _keep_weights(module: Any) -> None:
    def plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]  # a module holds functions, too

    module.dispatch_cpu_unquantized_gemm = plain_linear


# separate_async keeps the policy of the last weight update beside the trained one, as tensor.cpu(), which on a CPU is
# the trained tensor itself: old log-probabilities would be those of the current policy.
@wrapt.when_imported("verl.utils.fsdp_utils")
def _save_copies(module: Any) -> None:
    @wrapt.decorator
    def copying(wrapped: Any, _instance: Any, args: tuple, kwargs: dict) -> Any:
        state, spec = wrapped(*args, **kwargs)
        return {name: (tensor.clone(), own_spec) for name, (tensor, own_spec) in state.items()}, spec

    module.fsdp2_sharded_save_to_cpu = copying(module.fsdp2_sharded_save_to_cpu)


# FSDP2 keeps a forward-only model (verl's reference worker) in pinned memory, which only an accelerator's driver gives.
@wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")
def _pageable_memory(module: Any) -> None:
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory: policy(pin_memory=False)
