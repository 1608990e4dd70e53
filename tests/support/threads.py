"""Numbers of torch's threads, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def each_of(*counts: int, backend: str = "cpu") -> Iterator[int]:
    """Set each number of threads for a turn of a loop; after it that of before is set again. Kernels of a GPU don't run
    in these threads: for them there are two turns."""
    counts = counts[:2] if backend in ("triton", "cuda") else counts
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)
