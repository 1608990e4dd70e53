"""`python -m benchmarks.under_load`: a contrast step of 8,192 rows on the CPU, alone and beside one busy process.

By default, threads of libgomp spin while they wait for each other, and share a core with the busy process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ROWS, DIM, CLASSES, STEPS = 8192, 256, 19, 7
SETTINGS = ({}, {"GOMP_SPINCOUNT": "1000"}, {"OMP_WAIT_POLICY": "PASSIVE"})


def step_seconds() -> float:
    """The median of some steps."""
    import torch

    import metricseg_kernels as mk

    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(ROWS, DIM, generator=generator), dim=1).requires_grad_()
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    seconds = []
    for _ in range(STEPS + 2):
        begin = time.perf_counter()
        mk.pixel_contrast_loss(rows, labels, backend="cpu").backward()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def measure(setting: dict[str, str], busy: bool) -> float:
    """Seconds of a step in a process of its own."""
    names = {name for known in SETTINGS for name in known}
    environment = {k: v for k, v in os.environ.items() if k not in names} | setting
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, "-m", "benchmarks.under_load", "step"]
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    finally:
        if other is not None:
            other.kill()


def main() -> None:
    """Print a line for each setting."""
    for setting in SETTINGS:
        alone, beside = measure(setting, False), measure(setting, True)
        name = " ".join("=".join(pair) for pair in setting.items()) or "as it is"
        print(f"{name:24} alone {alone:.3f} s, beside a busy process {beside:.3f} s: {beside / alone:.1f} times")


if __name__ == "__main__":
    if sys.argv[1:] == ["step"]:
        print(step_seconds())
    else:
        main()
