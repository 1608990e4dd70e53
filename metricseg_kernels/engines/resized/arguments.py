"""Argument checks of losses of logits against labels. Each error names the argument, what it got, and what it takes."""

from __future__ import annotations

from torch import Tensor

from ...core import checks


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
