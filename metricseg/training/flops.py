"""Multiply-adds of a prediction, by the counter of torch, on shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metricseg.models.base import Segmenter


class Work(NamedTuple):
    """Work of a network for one picture.

    multiply_adds: in all; a flop counter that counts both operations gives twice the number.
    parts: multiply-adds of each child of the network that has any, the largest first; "rest" is outside of them.
    parameters: number of parameters, those of heads for training included.
    """

    multiply_adds: int
    parts: dict[str, int]
    parameters: int


class _Prediction(nn.Module):
    """A network as a module whose call gives some of its outputs, so that the counter names its parts."""

    def __init__(self, network: Segmenter, names: Collection[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.network.outputs(images, self.names)


def count(model: Segmenter, size: Sequence[int]) -> Work:
    """Work of a prediction for one picture [1, 3, *size], in evaluation mode.

    It is that of convolutions and matrix products, attention included, as torch.utils.flop_counter has them. Norms,
    activations and interpolation, refined or not, count as none. For a network that retrieves it is the work of the
    embedding: that of the search depends on the bank.

    The network is copied to the meta device, and nothing is computed.

    Raises ValueError, named with its value, for a size that is not two integers >= 1, or that the network can't take.
    """
    if len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise ValueError(f"size is {size!r}; it takes (height, width), two integers >= 1")
    network = _Prediction(copy.deepcopy(model).to("meta").eval(), (model.predicts_from,))
    images = torch.empty(1, 3, *size, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"{type(model).__name__} can't be counted at size {list(size)}: {error}") from error
    flops = {module: sum(found.values()) for module, found in counter.get_flop_counts().items()}
    total, root = flops.get("Global", 0) // 2, f"{type(network).__name__}.network"
    parts = {name: _below(f"{root}.{name}", flops) // 2 for name, _ in model.named_children()}
    parts["rest"] = total - sum(parts.values())
    return Work(
        total,
        {name: work for name, work in sorted(parts.items(), key=lambda item: -item[1]) if work},
        sum(p.numel() for p in model.parameters()),
    )


def _below(module: str, flops: dict[str, int]) -> int:
    """Operations of a module, or of those within it that were called, if it was not called itself."""
    inside = [name for name in flops if name == module or name.startswith(f"{module}.")]
    outer = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    return sum(flops[name] for name in outer)
