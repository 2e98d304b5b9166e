"""The Triton kernels as the GPU would get them: compiled ahead of time, which needs no GPU.

Skipped where Triton is not installed, or interprets (``TRITON_INTERPRET=1``: then there is nothing to compile).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from paced_verl.divergence import fused  # noqa: E402

KERNELS = {"forward": fused._rest_logsumexp_kernel, "backward": fused._rest_gradient_kernel}
TYPES = {"ascending": "*i32", "rows": "*i64", "rest": "*fp32", "grad_rest": "*fp32"}
LANES = {"bf16": 8, "fp32": 4}
NUMBERS = ("row_stride", "ids_stride", "vocab")


def compiled(kernel: Any, dtype: str, capability: int, lane: int, divisible: bool) -> Any:
    """What Triton makes of a kernel; ``divisible``: for a vocabulary that is a multiple of 16, as its JIT sees it."""
    types = {name: TYPES.get(name, f"*{dtype}") for name in kernel.arg_names}
    types |= dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(("BLOCK", "LANE"), "constexpr")
    multiples = ("row_stride", "vocab") if divisible else ()
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name in multiples
    }
    types = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(kernel, types, {"BLOCK": fused.BLOCK, "LANE": lane}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": fused.WARPS})


def memory_instructions(ptx: str) -> Counter[str]:
    return Counter(re.findall(r"(?:ld|st)\.global[\w.]*", ptx))


def spills(ptx: str, capability: int, folder: Path) -> tuple[int, int]:
    """Bytes that NVIDIA's assembler stores and loads for want of registers."""
    (folder / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (\w+)", ptx)[1]  # type: ignore[index]
    assembler = get_ptxas(capability).path
    command = [assembler, "-v", f"--gpu-name={target}", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    stored, loaded = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    return int(stored), int(loaded)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", LANES)
@pytest.mark.parametrize("divisible", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_logits_are_read_and_written_16_bytes_at_a_time(
    name: str, divisible: bool, dtype: str, capability: int, tmp_path: Path
) -> None:
    ptx = compiled(KERNELS[name], dtype, capability, LANES[dtype], divisible).asm["ptx"]
    found = memory_instructions(ptx)
    a_thread = fused.BLOCK // (32 * fused.WARPS) // LANES[dtype]
    assert found["ld.global.v4.b32"] == a_thread
    assert found["ld.global.b16"] == 0, "no logit is read on its own"
    assert found["ld.global.b32"] <= 2, "only the ids, or the row's two numbers, are"
    if name == "backward":  # of a whole block; at the ends of a row of an odd vocabulary each token on its own
        assert found["st.global.v4.b32"] >= a_thread
    assert spills(ptx, capability, tmp_path) == (0, 0)


def test_without_a_common_beginning_each_token_is_read_on_its_own() -> None:
    """What the test above would find if rows were not brought to 16 bytes: so it can fail."""
    found = memory_instructions(compiled(KERNELS["forward"], "bf16", 80, lane=1, divisible=False).asm["ptx"])
    assert found["ld.global.v4.b32"] == 0
    assert found["ld.global.b16"] == fused.BLOCK // (32 * fused.WARPS)
