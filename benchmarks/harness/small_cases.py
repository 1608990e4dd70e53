"""Each kernel of a backend once or twice on small input: for compute-sanitizer, and the first thing to run on a device.

    python -m benchmarks.harness.small_cases BACKEND [FAMILY ...]

Results are checked for being finite, and NaN where a label is out of range; tests check their values.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor

from metricseg_kernels.core.registry import FAMILIES


def check_finite(*tensors: Tensor | None) -> None:
    """Wait for the device, then check losses and gradients."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert all(tensor is not None and bool(tensor.isfinite().all()) for tensor in tensors)


def labeled_maps(title: str, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits that learn, and labels, 255 ignored: upsampling, also by a large ratio, downsampling, neither.

    title: goes ahead of the line that says that a case is done.
    """
    for classes, cells, size, dtype in (
        (19, (9, 13), (36, 52), torch.float32),
        (5, (8, 8), (31, 29), torch.bfloat16),
        (150, (12, 12), (12, 12), torch.float32),
        (3, (33, 17), (9, 8), torch.float16),
        (4, (2, 2), (150, 90), torch.float32),
    ):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, classes, *cells, generator=generator).to(device, dtype).requires_grad_()
        labels = torch.randint(classes, (2, *size), generator=generator).to(device, torch.uint8)
        labels[:, 0, :2] = 255
        yield logits, labels
        print(f"{title} {tuple(logits.shape)} to {size} {dtype}: done", flush=True)


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
