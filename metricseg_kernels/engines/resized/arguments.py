"""Argument checks of losses of logits against labels. Each error names the argument, what it got, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core import checks

Reduce = Callable[[Tensor], Tensor]


def drop_channel(target: Tensor) -> Tensor:
    """Labels [B, 1, H, W] as [B, H, W]; anything else as it is."""
    return target[:, 0] if isinstance(target, Tensor) and target.ndim == 4 and target.shape[1] == 1 else target


def check_pair(input: Tensor, target: Tensor, dense: bool, name: str = "input") -> None:
    """Raise for logits [B, K, h, w] and labels [B, H, W], or a dense target [B, K, H, W], that don't go together."""
    checks.tensor(name, input, 4, checks.FLOATS, "[B, K, h, w]")
    if dense:
        checks.tensor("target", target, 4, checks.FLOATS, "[B, K, H, W]")
        if target.requires_grad:
            raise ValueError("target requires grad; there is no gradient to targets")
    else:
        if isinstance(target, Tensor) and target.ndim == 4 and target.shape[1] > 1:
            last = target.shape[1] != input.shape[1] == target.shape[3]
            raise ValueError(
                f"target must be class indices [B, H, W], got shape {tuple(target.shape)}; if these are one-hot maps, "
                f"write target.argmax({-1 if last else 1})"
            )
        checks.tensor("target", target, 3, checks.LABELS, "[B, H, W]")
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
