"""Measured peak memory of a piece of work: what is in use at its highest, beyond what was in use before.

CPU: from the resident set's high-water mark, which Linux lets a process reset. CUDA: from torch's allocator.
Run the work once before, so that what it allocates once and keeps is not counted.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

Work = Callable[[], object]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(work: Work, device: str = "cpu") -> float | None:
    """Megabytes (1e6 bytes) on a device; None if they can't be measured."""
    if device == "cuda":
        return cuda_peak(work) / 1e6
    return None if why_not_resident() else max(0, resident_peak(work)) / 1e6


def why_not_resident() -> str | None:
    """None if resident memory can be measured, else the reason."""
    return None if os.access(_CLEAR, os.W_OK) else "no writable /proc/self/clear_refs, which resets the high-water mark"


def resident_peak(work: Work) -> int:
    """Peak growth of the resident set during `work`, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    _CLEAR.write_text("5")  # the high-water mark starts again from the resident set of now
    work()
    return _status("VmHWM") - before


def cuda_peak(work: Work) -> int:
    """Peak of the bytes that the allocator has in use during `work`, beyond those in use before."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(found.group(1)) * 1024
