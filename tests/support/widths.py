"""A function of a test module, run at another vector width of the CPU kernels."""

import importlib
import os
import platform

import pytest

from benchmarks.harness.memory import FreshProcesses

by_width = pytest.mark.parametrize(
    "width",
    ["avx2", "baseline"] if platform.machine() == "x86_64" else [pytest.param("", marks=pytest.mark.skip("one width"))],
)


def run_at(processes: FreshProcesses, width: str, module: str, function: str) -> None:
    """Call `module.function()` in a process with METRICSEG_SIMD=width, and raise what it raises."""
    processes.call(_run, width, module, function, timeout=300)


def _run(width: str, module: str, function: str) -> None:
    os.environ["METRICSEG_SIMD"] = width  # before the first call of a kernel
    getattr(importlib.import_module(module), function)()
