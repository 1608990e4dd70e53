"""Argument checks of the focal family. Each error names the argument, what it got, and what it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.resize import label_size
from ..engines.resized.arguments import check_class_weight, check_logits, check_pair, drop_channel, is_volume

REDUCTIONS = ("mean", "sum", "none")


def check_selection(thresh: float, min_kept: int, top_k_percent: float | None) -> None:
    """Check which pixels OHEM keeps."""
    checks.number("thresh", thresh, 0.0, 1.0)
    if thresh == 0:
        raise ValueError("thresh must be in (0, 1], got 0")
    checks.integer("min_kept", min_kept, 0, 2**63 - 1)
    if top_k_percent is None:
        return
    checks.real("top_k_percent", top_k_percent)
    if not 0 < top_k_percent <= 1:
        raise ValueError(f"top_k_percent must be in (0, 1], got {top_k_percent}; 0.2 keeps a fifth of the pixels")
    if (thresh, min_kept) != (0.7, 100_000):
        raise ValueError(
            f"top_k_percent takes the place of thresh and min_kept, got thresh={thresh}, min_kept={min_kept} beside it"
        )


def check_reduction(reduction: str, avg_factor: float | Tensor | None) -> None:
    checks.choice("reduction", reduction, REDUCTIONS)
    if avg_factor is None:
        return
    if reduction != "mean":
        raise ValueError(f"avg_factor goes with reduction='mean', got reduction={reduction!r}")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f"avg_factor must be a number or a 0-d tensor, got shape {tuple(avg_factor.shape)}")
        if torch.compiler.is_compiling() or not checks.validates(avg_factor.device):
            return
        avg_factor = avg_factor.item()
    checks.number("avg_factor", avg_factor, 0.0)


def check_softmax(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
    avg_factor: float | Tensor | None,
    align_corners: bool,
) -> Tensor:
    """Check the arguments, and return the labels as [B, (D,) H, W]."""
    target = drop_channel(target, is_volume(input))
    check_pair(input, target, dense=False, volumes=True)
    if input.shape[1] == 1:
        raise ValueError(
            f"input must have two classes or more, got shape {tuple(input.shape)}: the softmax of one is always 1; "
            "sigmoid_focal_loss takes a single one"
        )
    checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    check_reduction(reduction, avg_factor)
    checks.boolean("align_corners", align_corners)
    check_class_weight(weight, input)
    return target


def check_sigmoid(
    input: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float,
    reduction: str,
    avg_factor: float | Tensor | None,
    align_corners: bool,
) -> Tensor:
    """Check the arguments, and return the labels as [B, (D,) H, W], or dense targets [B, K, (D,) H, W] as floating
    numbers."""
    check_logits("input", input, volumes=True)
    if input.shape[1] > 1:
        target = drop_channel(target, is_volume(input))
    dense = isinstance(target, Tensor) and target.ndim == input.ndim
    if dense and target.dtype in checks.LABELS:
        target = target.to(checks.accumulator(input.dtype))
    check_pair(input, target, dense, volumes=True)
    checks.number("gamma", gamma, 0.0)
    checks.real("alpha", alpha)
    checks.number("alpha", alpha, -torch.inf if alpha == -torch.inf else min(alpha, 0.0), 1.0)
    check_reduction(reduction, avg_factor)
    checks.boolean("align_corners", align_corners)
    return target


def check_dense(target: Tensor, ignore_index: int) -> None:
    """Raise ValueError for targets that are neither ignored nor in [0, 1], if that needs no host sync or
    METRICSEG_VALIDATE=1."""
    if torch.compiler.is_compiling() or not checks.validates(target.device) or target.numel() == 0:
        return
    low, high = target.aminmax()
    if low >= 0 and high <= 1:
        return
    bad = ~((target >= 0) & (target <= 1)) & ~(target == ignore_index).all(1, keepdim=True)
    if bad.any():
        raise ValueError(
            f"target holds {int(bad.sum())} values that are neither in [0, 1] nor, in every channel of their pixel, "
            f"ignore_index ({ignore_index}): for example {target[bad][0].item():g}"
        )


def check_pixel_weight(weight: Tensor, target: Tensor, input: Tensor) -> Tensor:
    """Check pixel weights, and return them as [B, (D,) H, W], the size of the target."""
    size = "D, H, W" if is_volume(input) else "H, W"
    pixels = (target.shape[0], *label_size(input, target))
    if not isinstance(weight, Tensor):
        raise TypeError(f"pixel_weight must be a Tensor [B, {size}], got {type(weight).__name__}")
    if tuple(weight.shape) not in (pixels, (pixels[0], 1, *pixels[1:])):
        raise ValueError(f"pixel_weight must be [B, {size}] or [B, 1, {size}] with {pixels}, got {tuple(weight.shape)}")
    checks.same_device("pixel_weight", weight, "target", target)
    return weight.reshape(pixels)
