"""What this machine is, and how fast it can go: the limits that every benchmark is held against."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

DEVICE = os.environ.get("METRICSEG_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).resolve().parents[2]


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1].strip()  # type: ignore[index]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def record(device: str = DEVICE) -> dict[str, Any]:
    """Device and versions, as they go into every results file."""
    entry: dict[str, Any] = {
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "commit": _output("git", "describe", "--always", "--dirty"),
    }
    if device == "cuda":
        entry["cuda"] = torch.version.cuda
        entry["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return entry


def slug(device_name: str) -> str:
    """The name of a device as a folder name: "NVIDIA H100 80GB HBM3" -> "h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower().replace("nvidia", "")).strip("-")


def _best(device: str, run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some runs, of `repeats` calls each."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 30 and (len(times) < 3 or time.perf_counter() - began < 2):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


def copy_rate(device: str) -> float:
    """Bytes read plus bytes written per second by a large copy."""
    source = torch.ones((1 << 30 if device == "cuda" else 1 << 26) // 4, device=device)
    sink = torch.empty_like(source)
    return 2 * source.nbytes / _best(device, lambda: sink.copy_(source), repeats=1)


def exp_rate(device: str) -> float:
    """Exponentials per second in fp32, of operands that need no memory: in cache on a CPU, in registers on a GPU."""
    if device == "cuda" and triton is not None:
        blocks = 132 * 64
        out = torch.empty(blocks * 256, device=device)
        return out.numel() * 16 * 256 / _best(device, lambda: _chained_exp[(blocks,)](out, ROUNDS=256), repeats=2)
    values = torch.linspace(-4, 4, 1 << 22 if device == "cuda" else 1 << 16, device=device)
    out = torch.empty_like(values)
    return values.numel() / _best(device, lambda: torch.exp(values, out=out), repeats=40)


def arithmetic(x: torch.Tensor) -> str:
    """What matrix products of such a tensor are computed in: the name of its dtype, or "tf32"."""
    if x.dtype == torch.float32 and x.is_cuda and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return str(x.dtype).removeprefix("torch.")


def matmul_rates(device: str) -> dict[str, float]:
    """Operations per second, two per multiply-add, of large square matrix products, by `arithmetic`."""
    size = 8192 if device == "cuda" else 2048
    kinds = {"float32": (torch.float32, "highest")}
    if device == "cuda":
        kinds |= {"tf32": (torch.float32, "high"), "bfloat16": (torch.bfloat16, "highest")}
    before, rates = torch.get_float32_matmul_precision(), {}
    for name, (dtype, precision) in kinds.items():
        torch.set_float32_matmul_precision(precision)
        x = torch.randn(size, size, device=device, dtype=dtype)
        out = torch.empty_like(x)
        rates[name] = 2 * size**3 / _best(device, lambda x=x, out=out: torch.mm(x, x, out=out), repeats=1)
    torch.set_float32_matmul_precision(before)
    return rates


if triton is not None:

    @triton.jit
    def _chained_exp(out, ROUNDS: tl.constexpr):
        # 16 independent chains a thread hide the latency of each; exp(-x) stays in (0, 1]
        columns = tl.arange(0, 256)
        chain = tl.arange(0, 16)
        x = (columns[:, None] + chain[None, :]).to(tl.float32) * 1e-3
        for _ in range(ROUNDS):
            x = tl.exp(-x)
        tl.store(out + tl.program_id(0) * 256 + columns, tl.sum(x, 1))


@functools.cache
def limits(device: str = DEVICE) -> dict[str, Any]:
    """{"bytes_per_s", "exp_per_s", "exp_by", "flops_per_s"}, measured here and now, once per run."""
    by = "in registers" if device == "cuda" and triton is not None else "torch.exp in cache"
    rates = {"bytes_per_s": copy_rate(device), "exp_per_s": exp_rate(device), "exp_by": by}
    return rates | {"flops_per_s": matmul_rates(device)}
