"""Shared by the adapters: leave out a model's final upsampling in training, and give the losses its align_corners.

A host's forward upsamples between its head and its end. In training, `skip_upsampling` keeps the head's output aside
and lets an empty batch run through that code in its place, so nothing of the host is copied or replaced. State dict,
class and signature of the model stay as they were.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from metricseg.losses import PixelLoss

Place = Callable[[Any, dict[str, Tensor]], Any]


def need(name: str, package: str) -> ModuleType:
    """The module `name`; an ImportError that says which package to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise
        raise ImportError(f"{name} is not installed; this adapter needs it: pip install {package}") from error


def follow(criterion: nn.Module, align_corners: bool) -> None:
    """Give every loss on logits inside `criterion` the model's `align_corners`.

    Raises TypeError if there is none: another criterion would compare small logits with large labels.
    """
    losses = [module for module in criterion.modules() if isinstance(module, PixelLoss)]
    if not losses:
        raise TypeError(
            f"criterion is a {type(criterion).__name__}, which can't take low-resolution logits; it takes FocalLoss, "
            "CrossEntropyLoss or another loss on logits of metricseg.losses"
        )
    for loss in losses:
        loss.align_corners = align_corners


class Skip:
    """The hooks of `skip_upsampling`, and what they keep between the heads and the end of one forward pass."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kept: dict[str, tuple[Tensor, Tensor]] | None = None  # None outside of a forward pass in training

    def begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Pre-hook of the module that upsamples."""
        self.kept = {} if module.training else None

    def keep(self, name: str, head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook of a head: keep its output, and pass on none of its images."""
        if self.kept is None:
            return output
        nothing = output[:0]
        self.kept[name] = output, nothing
        return nothing

    def put(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Hook of the module that upsamples: put what was kept into its output.

        Adding the sum of nothing, 0, makes what others hooked to the passed-on tensor run before the head's backward:
        FSDP gathers the parameters of a head there.
        """
        kept, self.kept = self.kept, None
        if not kept:
            return output
        return self.place(output, {name: logits + nothing.sum() for name, (logits, nothing) in kept.items()})


def skip_upsampling(module: nn.Module, heads: Mapping[str, nn.Module], place: Place) -> None:
    """In training, take the outputs of `heads`, submodules of `module`, past the rest of its forward.

    `place(output, kept)` puts them, by name, into the output that `module` computed from empty batches. It is a
    function of a Python module, so that the model can be pickled. In eval mode, and the second time, nothing changes.
    """
    if any(isinstance(getattr(hook, "__self__", None), Skip) for hook in module._forward_hooks.values()):
        return
    skip = Skip(place)
    module.register_forward_pre_hook(skip.begin)
    for name, head in heads.items():
        head.register_forward_hook(partial(skip.keep, name))
    module.register_forward_hook(skip.put)


class WithAuxiliary(nn.Module):
    """criterion(logits, labels) + aux_weight * criterion(auxiliary, labels); the first alone if auxiliary is None."""

    def __init__(self, criterion: nn.Module, aux_weight: float) -> None:
        super().__init__()
        if not math.isfinite(aux_weight):
            raise ValueError(f"aux_weight is {aux_weight}; it takes a finite factor")
        self.criterion, self.aux_weight = criterion, aux_weight

    def forward(self, logits: Tensor, auxiliary: Tensor | None, labels: Tensor) -> Tensor:
        loss = self.criterion(logits, labels)
        return loss if auxiliary is None else loss + self.aux_weight * self.criterion(auxiliary, labels)
