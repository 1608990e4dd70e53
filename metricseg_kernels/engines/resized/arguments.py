"""Argument checks of losses of logits against labels. Each error names the argument, what it got, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core import checks

Reduce = Callable[[Tensor], Tensor]


def is_volume(input: object) -> bool:
    """Whether logits are those of a volume, [B, K, d, h, w]."""
    return isinstance(input, Tensor) and input.ndim == 5


def check_logits(name: str, input: Tensor, volumes: bool) -> None:
    """Raise for what is no floating [B, K, h, w], or [B, K, d, h, w] with `volumes`."""
    layout = "[B, K, h, w] or [B, K, d, h, w]" if volumes else "[B, K, h, w]"
    checks.tensor(name, input, 5 if volumes and is_volume(input) else 4, checks.FLOATS, layout)


def drop_channel(target: Tensor, volume: bool = False) -> Tensor:
    """Labels [B, 1, H, W] as [B, H, W], of a volume [B, 1, D, H, W] as [B, D, H, W]; anything else as it is."""
    channel = isinstance(target, Tensor) and target.ndim == (5 if volume else 4) and target.shape[1] == 1
    return target[:, 0] if channel else target


def check_pair(input: Tensor, target: Tensor, dense: bool, name: str = "input", volumes: bool = False) -> None:
    """Raise for logits [B, K, h, w] and labels [B, H, W], or a dense target [B, K, H, W], that don't go together; with
    `volumes` also for those of volumes."""
    check_logits(name, input, volumes)
    size = "D, H, W" if is_volume(input) else "H, W"
    if dense:
        checks.tensor("target", target, input.ndim, checks.FLOATS, f"[B, K, {size}]")
        if target.requires_grad:
            raise ValueError("target requires grad; there is no gradient to targets")
    else:
        if isinstance(target, Tensor) and target.ndim == input.ndim and target.shape[1] > 1:
            last = target.shape[1] != input.shape[1] == target.shape[-1]
            raise ValueError(
                f"target must be class indices [B, {size}], got shape {tuple(target.shape)}; if these are one-hot "
                f"maps, write target.argmax({-1 if last else 1})"
            )
        checks.tensor("target", target, input.ndim - 1, checks.LABELS, f"[B, {size}]")
    checks.same_device("target", target, name, input)
    if target.shape[: 2 if dense else 1] != input.shape[: 2 if dense else 1]:
        raise ValueError(
            f"target {tuple(target.shape)} and {name} {tuple(input.shape)} differ in batch size or classes"
        )
    if input.shape[1] == 0:
        raise ValueError(f"{name} must have at least one class, got shape {tuple(input.shape)}")
    if target.numel() > 0 and input.numel() == 0:
        raise ValueError(f"{name} {tuple(input.shape)} is empty while target {tuple(target.shape)} is not")


def check_class_weight(weight: Tensor | None, input: Tensor) -> None:
    """Raise for class weights that are no floating [K] without gradient."""
    if weight is None:
        return
    checks.tensor("weight", weight, 1, checks.FLOATS, "[K]")
    checks.same_device("weight", weight, "input", input)
    if weight.shape[0] != input.shape[1]:
        raise ValueError(f"weight must have one entry per class, {input.shape[1]}, got {weight.shape[0]}")
    if weight.requires_grad:
        raise ValueError("weight requires grad; there is no gradient to class weights")


def check_all_reduce(all_reduce: Reduce | None, per_image: bool) -> None:
    """Raise for what is no function, and for one of sums that are apart."""
    if all_reduce is not None and not callable(all_reduce):
        raise TypeError(f"all_reduce must be a function of a Tensor, got {type(all_reduce).__name__}")
    if per_image and all_reduce is not None:
        raise ValueError("all_reduce adds up sums over the batch; with per_image=True there are none")


def reduce_all(all_reduce: Reduce, parts: list[Tensor]) -> list[Tensor]:
    """The parts after all_reduce of one vector of them all."""
    given = torch.cat([part.flatten() for part in parts])
    everything = all_reduce(given)
    if not isinstance(everything, Tensor) or everything.shape != given.shape:
        raise TypeError(
            f"all_reduce must return a Tensor [{len(given)}] as it is given, got {type(everything).__name__}"
        )
    reduced = everything.split([part.numel() for part in parts])
    return [part.view(own.shape) for part, own in zip(reduced, parts, strict=True)]
