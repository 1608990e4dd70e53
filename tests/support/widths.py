"""A function of a test module, run at another vector width of the CPU kernels."""

import os
import platform
import subprocess
import sys

import pytest

by_width = pytest.mark.parametrize(
    "width",
    ["avx2", "baseline"] if platform.machine() == "x86_64" else [pytest.param("", marks=pytest.mark.skip("one width"))],
)


def run_at(width: str, module: str, function: str) -> None:
    """Call `module.function()` in a process with METRICSEG_SIMD=width, and raise what it raises."""
    environment = {**os.environ, "METRICSEG_SIMD": width, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import {module}; {module}.{function}()"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
