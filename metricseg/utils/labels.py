"""Label maps at the grid of features, and errors about labels out of range."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg_kernels.core.labels import is_bad, labels_in_range

Form = tuple[str, Any, tuple[int, ...], str]


def nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """[B, H, W] -> [B, h, w], the pixels that F.interpolate(mode="nearest") takes, in their own dtype."""
    if maps.shape[-2:] == size:
        return maps
    rows, columns = (
        F.interpolate(torch.arange(old, dtype=torch.float32, device=maps.device)[None, None], new).long().flatten()
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[:, rows[:, None], columns]


def check_maps(
    name: str, maps: Tensor, layout: str, labels_name: str, labels: Tensor, others: Sequence[Form] = ()
) -> None:
    """Raise TypeError or ValueError unless maps [B, ., h, w], labels [B, H, W] and others, each (name, value, its
    possible numbers of dimensions, layout), belong together."""
    for what, value, dims, form in ((name, maps, (4,), layout), (labels_name, labels, (3,), "[B, H, W]"), *others):
        if not isinstance(value, Tensor):
            raise TypeError(f"{what} must be a Tensor {form}, got {type(value).__name__}")
        if value.ndim not in dims:
            raise ValueError(f"{what} must be {form}, got shape {tuple(value.shape)}")
        if value.shape[0] != maps.shape[0]:
            raise ValueError(f"{what} has a batch of {value.shape[0]}, {name} of {maps.shape[0]}")
        if value.device != maps.device:
            raise ValueError(f"{what} is on {value.device}, {name} on {maps.device}; both must be on one device")
    if labels.dtype not in (torch.uint8, torch.int32, torch.int64):
        raise TypeError(f"{labels_name} must have dtype uint8, int32 or int64, got {labels.dtype}")


def check_labels(labels: Tensor, num_classes: int | None, ignore_index: int, name: str = "labels") -> None:
    """Raise ValueError for a label out of range, on the CPU, and elsewhere with METRICSEG_VALIDATE=1."""
    if not checks_values(labels) or labels.numel() == 0:
        return
    classes = num_classes or (256 if labels.dtype == torch.uint8 else 1024)
    bad = is_bad(labels, classes, ignore_index)
    if bad.any():
        labels_in_range(int(bad.sum()), int(labels[bad][0]), classes, ignore_index, name)


def checks_values(value: Tensor) -> bool:
    """Whether values may be read: on the CPU, and elsewhere (a host sync) with METRICSEG_VALIDATE=1."""
    eager = not torch.compiler.is_compiling()
    return eager and (value.device.type == "cpu" or os.environ.get("METRICSEG_VALIDATE", "0") == "1")
