"""Bits of the CPU kernels before and after a change: `python -m bits FILE` saves them, or compares if FILE exists.

The calls are random ones of `fuzz`, each named by its seed, and larger ones that take every path of a walk over tiles.
Bits depend on the machine, on torch and on the number of threads: both runs must have the same.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from fuzz import draw_call, run
from torch import Tensor

from metricseg_kernels.core.registry import FAMILIES

SEEDS = 150


def main() -> int:
    path = Path(sys.argv[1])
    calls = {f"{family} seed {seed}": draw_call(family, seed)[1] for family in FAMILIES for seed in range(SEEDS)}
    for family in FAMILIES:
        calls.update(importlib.import_module(f"{family}_calls").large_calls())
    found = {name: run(call, call.tensors, "cpu") for name, call in calls.items()}
    if not path.exists():
        torch.save(found, path)
        print(f"{len(found)} calls saved")
        return 0
    kept = torch.load(path)
    differ = [n for n in kept | found if not same(kept.get(n), found.get(n))]
    print(f"{len(found)} calls, {len(differ)} differ", *differ, sep="\n")
    return 1 if differ else 0


def same(before: list[Tensor] | None, after: list[Tensor] | None) -> bool:
    """The same values, NaN in the same places."""
    if before is None or after is None or len(before) != len(after):
        return False
    return all(
        a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before, after, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
