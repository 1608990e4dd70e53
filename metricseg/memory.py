"""Measured peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(work: Callable[[], object], device: str = "cpu") -> float | None:
    """Megabytes (1e6 bytes) by which `work()` raises the memory in use above what it was, at its highest.

    CUDA: from torch's allocator. CPU: from the resident set's high-water mark, which Linux lets a process reset; None
        on
    other systems. Call `work` once before, so that what it allocates once and keeps is not counted.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        work()
        return max(0, status("VmHWM") - before) * 1024 / 1e6
    except (OSError, AttributeError):
        return None


def status(name: str) -> int:
    """A field of /proc/self/status, in KiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found.group(1))
