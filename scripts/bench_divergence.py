"""Time and memory of the token divergence, forward + backward, beside verl's own top-k KL and the bandwidth floor.

    python scripts/bench_divergence.py                                    # CPU: 1,024 tokens, float32
    python scripts/bench_divergence.py --device cuda --json gpu.json      # 4,096 to 16,384 tokens, bfloat16
    python scripts/bench_divergence.py --verl-wheel verl-0.9.1-py3-none-any.whl   # where verl is not installed

On a CPU that other processes share, set OMP_WAIT_POLICY=passive: OpenMP threads that spin for a preempted sibling cost
many short operations (this package's) more than a few long ones (verl's).

All variants take turns in one process, so a busy machine slows them alike; times are medians. The floor is the time to
read the logits once and write their gradient once, measured as a copy of the logits in the same turns. Memory is the
peak beyond logits and inputs, gradient included: torch's allocator on CUDA, resident size of a fresh process on CPU.
"""

import argparse
import functools
import importlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
BASELINE = "verl"
FLOOR = "copy (floor)"

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # logits (n, V), teacher ids (n, k), log-probabilities (n, k)
Loss = Callable[..., torch.Tensor]


def load_divergence() -> ModuleType:
    """paced_verl.divergence from this checkout, without the package's own import, which needs more than torch."""
    package = ModuleType("paced_verl")
    package.__path__ = [str(ROOT / "paced_verl")]
    sys.modules["paced_verl"] = package
    return importlib.import_module("paced_verl.divergence")


def load_verl_losses(wheel: Path | None) -> ModuleType:
    """verl's FSDP distillation losses, installed or straight out of a wheel with stand-ins for what they import."""
    path = "verl/trainer/distillation/fsdp/losses.py"
    if wheel is None:
        return importlib.import_module(path.removesuffix(".py").replace("/", "."))
    stand_ins: dict[str, dict[str, object]] = {
        "verl": {},
        "verl.utils": {},
        "verl.utils.ulysses": {"get_ulysses_sequence_parallel_world_size": lambda: 1, "slice_input_tensor": None},
        "verl.workers": {},
        "verl.workers.config": {"DistillationConfig": object, "DistillationLossConfig": object},
    }
    for name, members in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    losses = ModuleType("verl_losses")
    exec(compile(zipfile.ZipFile(wheel).read(path), path, "exec"), vars(losses))
    return losses


def losses(wheel: Path | None) -> dict[str, Loss]:
    """Each variant: (logits, teacher ids, teacher log-probabilities) → (n,) divergences."""
    token_divergence = load_divergence().token_divergence
    verl_losses = load_verl_losses(wheel)

    def ours(name: str) -> Loss:
        return lambda logits, ids, log_probs: token_divergence(logits, ids, log_probs, name).value

    def verl(chunked: bool) -> Loss:
        settings = SimpleNamespace(log_prob_min_clamp=None, use_chunked_topk=chunked)

        def loss(logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
            offsets = torch.tensor([0, len(ids)], device=ids.device)
            out = verl_losses.compute_forward_kl_topk(
                student_logits=logits.unsqueeze(0),
                teacher_topk_log_probs=torch.nested.nested_tensor_from_jagged(log_probs, offsets),
                teacher_topk_ids=torch.nested.nested_tensor_from_jagged(ids, offsets),
                config=SimpleNamespace(distillation_loss=settings),
                data_format="thd",
            )
            return out["distillation_losses"][0]

        return loss

    return {
        "paced forward_kl": ours("forward_kl"),
        "paced reverse_kl": ours("reverse_kl"),
        BASELINE: verl(chunked=False),
        "verl chunked": verl(chunked=True),
    }


def make_inputs(tokens: int, args: argparse.Namespace) -> Inputs:
    """Random logits, and a teacher whose top-k are the student's own, with noise: the support real teachers have."""
    torch.manual_seed(0)
    logits = torch.empty(tokens, args.vocab, dtype=getattr(torch, args.dtype), device=args.device).normal_(0, 3)
    top, ids = logits.topk(args.k)
    log_probs = torch.log_softmax(top.float() + torch.randn(top.shape, device=args.device), dim=-1) - 0.05
    return logits.requires_grad_(), ids, log_probs  # the 0.05 leaves 5 % to the tail


def step(loss: Loss, inputs: Inputs) -> None:
    inputs[0].grad = None
    loss(*inputs).sum().backward()


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(variants: dict[str, Loss], inputs: Inputs, args: argparse.Namespace) -> dict[str, float]:
    target = torch.empty_like(inputs[0])
    runs: dict[str, Callable[[], object]] = {FLOOR: lambda: target.copy_(inputs[0].detach())}
    runs |= {name: functools.partial(step, loss, inputs) for name, loss in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats + 1):
        for name, run in runs.items():
            times[name].append(seconds(run, args.device))
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}  # the first turn warms up


def peak_bytes(name: str, variants: dict[str, Loss], tokens: int, args: argparse.Namespace) -> int:
    if args.device == "cuda":
        inputs = make_inputs(tokens, args)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(variants[name], inputs)
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, __file__, "--peak-of", name, "--tokens", str(tokens)]
    command += [f"--{key}={getattr(args, key)}" for key in ("vocab", "k", "dtype")]
    command += [f"--verl-wheel={args.verl_wheel}"] if args.verl_wheel else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_of_this_process(name: str, args: argparse.Namespace) -> int:
    loss = losses(args.verl_wheel)[name]
    step(loss, make_inputs(2, args))  # loads what a first call loads
    inputs = make_inputs(args.tokens[0], args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(loss, inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def show(results: list[dict], title: str) -> None:
    header = ["tokens", "variant", "ms", "speed-up over verl", "share of floor", "peak MiB", "of it gradient"]
    cells = [
        [
            f"{r['tokens']:,}",
            r["variant"],
            f"{r['seconds'] * 1e3:,.1f}",
            f"{r['speedup']:.2f}×",
            f"{r['floor_share']:.0%}",
            "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MIB:,.0f}",
            f"{r['gradient_bytes'] / MIB:,.0f}",
        ]
        for r in results
    ]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in [header, *cells]:
            print("  ".join(cell.rjust(20) for cell in row))
        return
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in cells:
        table.add_row(*row)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1024 on CPU; 4096 8192 16384 on CUDA")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--dtype", help="default: float32 on CPU, bfloat16 on CUDA")
    parser.add_argument("--repeats", type=int, help="default: 5 on CPU, 20 on CUDA")
    parser.add_argument("--verl-wheel", type=Path, help="a verl 0.9.1 wheel, where verl is not installed")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    args.tokens = args.tokens or ([1024] if on_cpu else [4096, 8192, 16384])
    args.dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    args.repeats = args.repeats or (5 if on_cpu else 20)
    if args.peak_of:
        print(peak_of_this_process(args.peak_of, args))
        return

    variants = losses(args.verl_wheel)
    results = []
    for tokens in args.tokens:
        # Memory first: on Linux a child's peak resident size starts at that of the process it was forked from.
        peaks = {name: peak_bytes(name, variants, tokens, args) for name in variants}
        inputs = make_inputs(tokens, args)
        times = median_seconds(variants, inputs, args)
        for name, measured in times.items():
            results.append(
                {
                    "tokens": tokens,
                    "variant": name,
                    "seconds": measured,
                    "speedup": times[BASELINE] / measured,
                    "floor_share": times[FLOOR] / measured,
                    "peak_bytes": peaks.get(name),
                    "gradient_bytes": inputs[0].nbytes,
                }
            )
        del inputs
    machine = f"{torch.get_num_threads()} CPU threads" if on_cpu else torch.cuda.get_device_name()
    setting = {
        "device": f"{platform.machine()}, {machine}",
        "torch": torch.__version__,
        **{key: getattr(args, key) for key in ("vocab", "k", "dtype", "repeats")},
    }
    show(results, f"{args.dtype}, V={args.vocab:,}, k={args.k}, forward + backward on {setting['device']}")
    if args.json:
        args.json.write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
