"""Each kernel of a backend once or twice on small input: for compute-sanitizer, and the first thing to run on a device.

    python -m benchmarks.harness.small_cases BACKEND [FAMILY ...]

Results are checked for being finite, and NaN where a label is out of range; tests check their values.
"""

from __future__ import annotations

import argparse
import importlib

import torch
from torch import Tensor

from metricseg_kernels.core.registry import FAMILIES


def check_finite(*tensors: Tensor | None) -> None:
    """Wait for the device, then check losses and gradients."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert all(tensor is not None and bool(tensor.isfinite().all()) for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("families", nargs="*", metavar="FAMILY", default=list(FAMILIES))
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for family in arguments.families:
        importlib.import_module(f"benchmarks.bench_{family}").small_cases(arguments.backend, arguments.device)


if __name__ == "__main__":
    main()
