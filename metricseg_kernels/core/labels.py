"""Comparison of labels with numbers: ignored pixels, classes, and errors about the rest.

uint8 labels are compared with numbers that uint8 does not hold; PyTorch would wrap those.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import checks

IgnoreIndex = int | Literal["auto"] | None
NO_LABEL = -(2**63)  # an ignore_index that stands for none
MOST_CLASSES = 65536


def resolve_ignore_index(ignore_index: IgnoreIndex, classes: int | None) -> int:
    """The label that takes no part: for "auto" 255 if that is no class, for None `NO_LABEL`.

    Raises TypeError or ValueError for any other value.
    """
    if ignore_index is None:
        return NO_LABEL
    if ignore_index == "auto":
        return NO_LABEL if classes is not None and classes > 255 else 255
    if isinstance(ignore_index, str):
        raise ValueError(f'ignore_index must be an int, None or "auto", got {ignore_index!r}')
    checks.integer("ignore_index", ignore_index, NO_LABEL, 2**63 - 1)
    return ignore_index


def is_label(labels: Tensor, value: int) -> Tensor:
    """labels == value."""
    held = torch.iinfo(labels.dtype)
    return labels == value if held.min <= value <= held.max else torch.zeros_like(labels, dtype=torch.bool)


def is_class(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Mask of the labels in [0, classes) that are not ignored."""
    inside = (labels >= 0) & (labels <= min(classes - 1, torch.iinfo(labels.dtype).max))
    return inside & ~is_label(labels, ignore_index)


def is_bad(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Mask of the labels that are neither ignored nor in [0, classes)."""
    return ~is_class(labels, classes, ignore_index) & ~is_label(labels, ignore_index)


def labels_in_range(bad_count: float, bad_label: float, classes: int, ignore_index: int, name: str = "target") -> None:
    """Raise ValueError about labels out of range, if there are any."""
    if bad_count:
        takes = f"not in [0, {classes})"
        if ignore_index != NO_LABEL:
            takes = f"neither ignore_index ({ignore_index}) nor in [0, {classes})"
        raise ValueError(f"{name} holds {int(bad_count)} labels that are {takes}: for example {int(bad_label)}")


def check_labels(labels: Tensor, classes: int, ignore_index: int, name: str) -> None:
    """Raise ValueError for labels out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(labels.device):
        bad = is_bad(labels, classes, ignore_index)
        if bad.any():
            labels_in_range(int(bad.sum()), int(labels[bad][0]), classes, ignore_index, name)
