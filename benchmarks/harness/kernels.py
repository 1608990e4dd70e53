"""The kernels that a call runs on the device."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType


class Kernel(NamedTuple):
    """A kernel, copy or fill that a call ran on the device."""

    name: str
    launches: int
    seconds: float  # of all its launches


def kernels_of(call: Callable[[], None]) -> list[Kernel]:
    """The kernels, copies and fills of one call, by torch's profiler; the longest first."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    kernels: dict[str, Kernel] = {}
    for event in profile.key_averages():
        if event.device_type == DeviceType.CUDA:
            # metricseg::contrast::finish_kernel<float>(...) and its other instances together
            name = re.sub(r"^void |\(anonymous namespace\)::|[<(].*", "", event.key).split("::")[-1].strip()
            seen, seconds = kernels.get(name, Kernel(name, 0, 0.0)), event.self_device_time_total / 1e6
            kernels[name] = Kernel(name, seen.launches + event.count, seen.seconds + seconds)
    return sorted(kernels.values(), key=lambda kernel: -kernel.seconds)
