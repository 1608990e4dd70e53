"""What an import costs."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["metricseg_kernels", "metricseg.losses"])
def test_import_is_quick_and_leaves_dynamo_alone(module: str) -> None:
    script = f"""
import sys, time
import torch
assert "torch._dynamo" not in sys.modules
begin = time.process_time()
import {module}
print(time.process_time() - begin)
assert "torch._dynamo" not in sys.modules and "triton" not in sys.modules
"""
    # processor time, the least of three processes: a busy machine shows little in it
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(3)]
    assert not any(run.returncode for run in runs), runs[0].stderr
    assert min(float(run.stdout) for run in runs) < 0.3  # seconds
