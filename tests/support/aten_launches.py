"""Operators of ATen that would launch a kernel on a GPU, as a profile of the CPU shows them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
VIEWS = {"_reshape_alias", "_unsafe_view", "contiguous", "detach", "detach_", "expand_as", "flatten", "lift_fresh",
         "reshape", "to"}  # fmt: skip


def launching(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    """Whether an operator of ATen launches a kernel on a GPU."""
    if any(map(launching, event.cpu_children)):
        return True
    name = event.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name, None)
    views = packet is not None and any(getattr(packet, overload).is_view for overload in packet.overloads())
    return name != event.name and not views and name not in ALLOCATIONS | VIEWS


def outermost(events: list[torch.autograd.profiler_util.FunctionEvent]) -> Iterator[str]:
    """Names of the operators of ATen that launch kernels, and are not part of another."""
    for event in events:
        if not event.name.startswith("aten::"):
            yield from outermost(event.cpu_children)
        elif launching(event):
            yield event.name.removeprefix("aten::")
