"""Triton launches compiled without a GPU: what the launchers ask for on a target, against its resource budgets.

The launchers run for real; a stand-in driver names the target, and a launch ends after its compilation. Kernels must
have been imported without TRITON_INTERPRET, so this needs a process of its own:

    PYTHONPATH=.:tests/support python -m launches FAMILY CAPABILITY [-k TEXT]
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import places  # noqa: F401  (modules of a family's tests by their names)
import pytest
import torch
from torch import Tensor

from benchmarks.harness.memory import FreshProcesses
from metricseg_kernels.core import registry

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes of a block
REGISTER_FILE = 65536  # of a multiprocessor
FAMILIES = tuple(family for family, record in registry.FAMILIES.items() if "triton" in record.backends)


class Call(NamedTuple):
    """Launchers called once, in one matmul precision."""

    id: str
    run: Callable[[], None]
    precision: str = "highest"
    may_spill: int = 0  # bytes of stack per thread; only exact fp32 and fp64 products may
    tensor_cores: bool | None = None  # whether its products run on them; None: it has no products, or either is right


class Kernel(NamedTuple):
    """One compiled launch."""

    call: str
    name: str
    registers: int
    stack: int
    shared: int
    warps: int
    wgmma: int
    mma: int
    seconds: float

    def complaint(self, call: Call, capability: int) -> str | None:
        """What does not fit the device, if anything."""
        if self.stack > call.may_spill:
            return f"{self.stack} bytes of stack"
        if self.registers * 32 * self.warps > REGISTER_FILE:
            return f"{self.registers} registers x {self.warps} warps: not one block fits a multiprocessor"
        if self.shared > SHARED_LIMIT[capability]:
            return f"{self.shared} bytes of shared memory"
        if call.tensor_cores is not None and self.name in PRODUCTS:
            found = self.wgmma if capability >= 90 else self.mma
            if (found > 0) != call.tensor_cores:
                return f"{found} tensor-core instructions"
        return None


def pairs(axes: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """A value for each axis, until any two values of two axes have occurred together, each time as many new ones as can
    be."""
    choices = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    missing = [set(itertools.combinations(choice.items(), 2)) for choice in choices]
    while any(missing):
        best = max(range(len(choices)), key=lambda i: len(missing[i]))
        yield choices[best]
        missing = [pairs - missing[best] for pairs in missing]


# how products of a dtype run: (dtype, matmul precision, whether on tensor cores, bytes of stack that may spill)
ARITHMETIC = {
    "bf16": (torch.bfloat16, "highest", True, 0),
    "fp16": (torch.float16, "highest", True, 0),
    "tf32": (torch.float32, "high", True, 0),
    "fp32": (torch.float32, "highest", False, 64),
    "fp64": (torch.float64, "highest", None, 64),
}
# kernels made of matrix products
PRODUCTS = {"stats", "symmetric_stats", "gradient", "similarity", "gradients", "spread", "soft_gradient"}


def make_maps(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "nchw") -> Tensor:
    """Maps without data. strided: rows that do not join; expanded: one number, with stride 0."""
    if layout == "expanded":
        return torch.empty((), dtype=dtype, device="meta").expand(shape)
    if layout == "strided":
        return make_maps((*shape[:-1], shape[-1] + 16), dtype)[..., : shape[-1]]
    order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=order)


def tool() -> Path:
    """The cuobjdump that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled_by(processes: FreshProcesses, launch: Callable[..., None], *arguments: object) -> dict[str, int]:
    """Number of kernels of each name that launches compile, in a fresh process. Skips without Triton."""
    pytest.importorskip("triton")
    return processes.call(_compiled_by, launch, arguments, timeout=600)


def _compiled_by(launch: Callable[..., None], arguments: tuple[object, ...]) -> dict[str, int]:
    with compile_only(90) as compiled:
        launch(*arguments)
    return dict(Counter(name for name, _ in {(name, id(kernel)) for name, kernel, _ in compiled}))


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([str(tool()), "--dump-resource-usage", file.name], text=True)
    return tuple(int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK"))


@contextlib.contextmanager
def compile_only(capability: int) -> Iterator[list[tuple[str, Any, float]]]:
    """Launches for this target end after their compilation, of which each adds (kernel name, result, seconds)."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class StandIn:
        """A driver that knows its target and has no device."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    compiled: list[tuple[str, Any, float]] = []
    run = JITFunction.run

    def stop_after_compilation(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        start = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.__name__, kernel, time.perf_counter() - start))

    driver.set_active(StandIn())
    JITFunction.run = stop_after_compilation
    try:
        yield compiled
    finally:
        JITFunction.run = run


def compile_calls(calls: Iterable[Call], capability: int) -> Iterator[tuple[Call, list[Kernel], str | None]]:
    """Each call with its distinct kernels, and the error that ended it, if one did."""
    seen: set[int] = set()
    with compile_only(capability) as compiled:
        for call in calls:
            compiled.clear()
            error = None
            torch.set_float32_matmul_precision(call.precision)
            try:
                call.run()
            except Exception as caught:
                error = f"{type(caught).__name__}: {str(caught).strip()}"
            kernels = []
            for name, kernel, seconds in compiled:
                if id(kernel) in seen:
                    continue
                seen.add(id(kernel))
                registers, stack = resource_usage(kernel.asm["cubin"])
                ptx, metadata = kernel.asm["ptx"], kernel.metadata
                kernels.append(Kernel(call.id, name, registers, stack, metadata.shared, metadata.num_warps,
                                      ptx.count("wgmma.mma_async"), ptx.count("mma.sync"), seconds))  # fmt: skip
            yield call, kernels, error
