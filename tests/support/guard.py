"""Stands between an op and its kernels: poisons every output, and watches the margins around every tensor; or between
all ops and the host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metricseg_kernels.core.registry import FAMILIES

SENTINEL = 119  # a byte: as fp32 5.01e33, as int64 8608480567731124087; no label, no loss
MARGIN = 256  # bytes on either side
FIRST_OUTPUT = {name: inputs for family in FAMILIES.values() for name, inputs in family.kernels.items()}


class Guarded:
    """The kernels of a backend, each tensor moved into the middle of sentinel-filled storage for the call."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def run(*args: Any) -> None:
            self.calls += 1
            watched = []

            def move(argument: int, leaf: Any) -> Any:
                if not isinstance(leaf, Tensor):
                    return leaf
                inner, storage = _embed(leaf)
                output = argument >= FIRST_OUTPUT[name]
                if output:
                    inner.fill_(float("nan") if leaf.is_floating_point() else -77)
                watched.append((argument, leaf, inner, storage, None if output else storage.clone()))
                return inner

            # an argument may be a tuple of tensors
            moved = [pytree.tree_map(functools.partial(move, i), argument) for i, argument in enumerate(args)]
            getattr(self._kernels, name)(*moved)
            for argument, leaf, inner, storage, before in watched:
                assert (storage[:MARGIN] == SENTINEL).all(), f"{name} wrote before argument {argument}"
                assert (storage[-MARGIN:] == SENTINEL).all(), f"{name} wrote behind argument {argument}"
                if before is None:
                    leaf.copy_(inner)
                else:
                    assert torch.equal(storage, before), f"{name} wrote into argument {argument}, an input"

        return run


def _embed(x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor equal to x, strides included, inside storage of sentinel bytes."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    size = span * x.element_size()
    storage = torch.full((2 * MARGIN + size,), SENTINEL, dtype=torch.uint8, device=x.device)
    body = storage[MARGIN : MARGIN + size].view(x.dtype)
    body.copy_(x.detach().as_strided((span,), (1,)))
    return body.as_strided(x.shape, x.stride(), body.storage_offset()), storage


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """PyTorch raises where the host would wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a step that has run before, and the tensors that a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


class OnDevice(TorchDispatchMode):
    """Refuses tensors on the host: a copy of one to or from the device is what makes the host wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        leaves = pytree.tree_leaves((args, kwargs, out))
        assert all(t.device.type == "cuda" for t in leaves if isinstance(t, Tensor)), f"{function} meets the host"
        return out
