"""Labels and scores at label resolution, from maps of low-resolution logits. Label-size logits never exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import MOST_CLASSES, IgnoreIndex, resolve_ignore_index
from ..engines.resized.arguments import check_logits, drop_channel, is_volume
from . import op, reference

LABEL_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
MOST_MAPS = 32


@overload
def predict_labels(
    logits: Tensor | Sequence[Tensor],
    size: Sequence[int],
    *,
    flipped: bool | Sequence[bool] = ...,
    weights: Sequence[float] | None = ...,
    align_corners: bool = ...,
    return_confidence: Literal[False] = ...,
    return_entropy: Literal[False] = ...,
    out_dtype: torch.dtype | None = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def predict_labels(
    logits: Tensor | Sequence[Tensor],
    size: Sequence[int],
    *,
    flipped: bool | Sequence[bool] = ...,
    weights: Sequence[float] | None = ...,
    align_corners: bool = ...,
    return_confidence: bool = ...,
    return_entropy: bool = ...,
    out_dtype: torch.dtype | None = ...,
    backend: str | None = ...,
) -> tuple[Tensor, ...]: ...


def predict_labels(
    logits: Tensor | Sequence[Tensor],
    size: Sequence[int],
    *,
    flipped: bool | Sequence[bool] = False,
    weights: Sequence[float] | None = None,
    align_corners: bool = False,
    return_confidence: bool = False,
    return_entropy: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Predicted class of each pixel of [H, W], or [D, H, W], from one map of logits or from the average of several.

        z_m   = F.interpolate(logits_m, (H, W), mode="bilinear"), of the mirrored map if flipped_m
        p_k   = sum_m weights_m softmax(z_m)_k / sum_m weights_m
        label = the first k of the largest p_k;  for a single map of the largest z_k

    The maps are those of several scales, of mirrored images, or of several networks: evaluation at multiple scales in
    one pass. Memory is that of the outputs. A single map without confidence and entropy needs no exponential.

    Args:
        logits: [B, K, h, w] float64, float32, bfloat16 or float16, or a sequence of up to 32 such maps, of any sizes
            but the same B, K and dtype. K >= 2: for a binary mask z [B, 1, h, w], give
            `torch.cat([torch.zeros_like(z), z], 1)`. Of volumes [B, K, d, h, w], interpolated trilinearly; everything
            that has [B, H, W] here then has [B, D, H, W]. On CUDA volumes take the reference, at label size.
        size: (H, W), of a volume (D, H, W).
        flipped: whether the map is that of the image mirrored left to right; one for all, or one for each map.
        weights: of the maps, >= 0 and of positive sum; None for equal ones.
        align_corners: as in `F.interpolate`, of all maps.
        return_confidence: also return max_k p_k.
        return_entropy: also return -sum_k p_k log p_k, in nats.
        out_dtype: uint8, int16, int32 or int64, able to hold K - 1; None for the first of them.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        labels [B, H, W]; with confidence or entropy (labels, confidence), (labels, entropy), or (labels, confidence,
        entropy), both [B, H, W] in float32, or float64 for float64 input. Nothing carries a gradient. If a NaN is among
        the logits of a pixel, its confidence and entropy are NaN. Its label is the class of the first NaN, or 0 if
        there are several maps. Labels equal those of the materialized logits but for ties within rounding.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got.
        RuntimeError: a backend asked for by name can't run here.
    """
    inputs = _check(logits, flipped, weights, align_corners)
    size = _check_size(size, inputs.maps[0])
    inputs = _read_first(inputs, size[-1])
    checks.boolean("return_confidence", return_confidence)
    checks.boolean("return_entropy", return_entropy)
    classes = inputs.maps[0].shape[1]
    dtype = _check_dtype(out_dtype, classes)
    chosen = _choose(inputs, backend)
    if chosen == "reference":
        labels, confidence, entropy = reference.predict(inputs, tuple(size))
        labels = labels.to(dtype)
    else:
        labels, confidence, entropy = op.predict_labels(*inputs, size, dtype, return_confidence, return_entropy, chosen)
    more = [confidence] * return_confidence + [entropy] * return_entropy
    return (labels, *more) if more else labels


def confusion_matrix(
    logits: Tensor | Sequence[Tensor],
    target: Tensor,
    *,
    ignore_index: IgnoreIndex = "auto",
    flipped: bool | Sequence[bool] = False,
    weights: Sequence[float] | None = None,
    align_corners: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Counts of (label, predicted class) over the pixels of the target, for the predictions of `predict_labels`.

        C[i, j] = number of pixels with target i and prediction j

    Neither predictions nor logits exist at label resolution. Sums of rows are the pixels of a class, sums of columns
    those predicted as it. `C.diagonal() / (C.sum(0) + C.sum(1) - C.diagonal())` is the IoU of each class.

    Args:
        logits, flipped, weights, align_corners, backend: see `predict_labels`.
        target: [B, H, W] uint8, int32 or int64.
        ignore_index: label of pixels that don't count; None for no label; "auto" for 255 if that is no class.
        out: [K, K] int64 to which the counts are added, in place.

    Returns:
        [K, K] int64: `out` if given. The same as torchmetrics' on the same predictions.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. A label
            that is neither ignore_index nor in [0, K) raises on the CPU, and `out` is left as it was. On CUDA its pixel
            doesn't count; with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here.
    """
    inputs = _check(logits, flipped, weights, align_corners)
    first = inputs.maps[0]
    classes = first.shape[1]
    volume = is_volume(first)
    target = drop_channel(target, volume)
    checks.tensor("target", target, first.ndim - 1, checks.LABELS, "[B, D, H, W]" if volume else "[B, H, W]")
    checks.same_device("target", target, "logits", first)
    if target.shape[0] != first.shape[0]:
        raise ValueError(f"target {tuple(target.shape)} and logits {tuple(first.shape)} differ in batch size")
    ignored = resolve_ignore_index(ignore_index, classes)
    if out is not None:
        checks.tensor("out", out, 2, (torch.int64,), "[K, K]")
        checks.same_device("out", out, "logits", first)
        if tuple(out.shape) != (classes, classes):
            raise ValueError(f"out must be [K, K] with K = {classes}, got shape {tuple(out.shape)}")
    inputs = _read_first(inputs, target.shape[-1])
    chosen = _choose(inputs, backend)
    if chosen == "reference":
        counts, bad = reference.confusion(inputs, target, ignored)
        if not torch.compiler.is_compiling():
            op.check_labels(bad, classes, ignored)
    else:
        counts, _ = op.confusion_matrix(*inputs, target, ignored, chosen)
    return counts if out is None else out.add_(counts)


def _check(
    logits: Tensor | Sequence[Tensor],
    flipped: bool | Sequence[bool],
    weights: Sequence[float] | None,
    align_corners: bool,
) -> op.Inputs:
    maps = [logits] if isinstance(logits, Tensor) else logits
    if not isinstance(maps, (list, tuple)):
        got = type(logits).__name__
        raise TypeError(f"logits must be a Tensor [B, K, h, w] or [B, K, d, h, w], or a sequence of them, got {got}")
    if not 1 <= len(maps) <= MOST_MAPS:
        raise ValueError(f"logits must be 1 to {MOST_MAPS} maps, got {len(maps)}")
    names = ["logits" if len(maps) == 1 else f"logits[{i}]" for i in range(len(maps))]
    for name, map in zip(names, maps, strict=True):
        check_logits(name, map, volumes=True)
        if map.ndim != maps[0].ndim:
            raise ValueError(f"{name} {tuple(map.shape)} and {names[0]} {tuple(maps[0].shape)}: an image and a volume")
        checks.same_device(name, map, names[0], maps[0])
        if map.dtype != maps[0].dtype:
            raise TypeError(f"{name} must have the dtype of {names[0]}, {maps[0].dtype}, got {map.dtype}")
        if map.shape[:2] != maps[0].shape[:2]:
            raise ValueError(
                f"{name} {tuple(map.shape)} and {names[0]} {tuple(maps[0].shape)} differ in batch size or classes"
            )
        if 0 in map.shape[2:]:
            axes = "d, h, w" if is_volume(map) else "h, w"
            raise ValueError(f"{name} must have {axes} >= 1, got shape {tuple(map.shape)}")
    classes = maps[0].shape[1]
    if classes == 1:
        raise ValueError(
            f"{names[0]} must have two classes or more, got shape {tuple(maps[0].shape)}: the softmax of one is always "
            "1; for a binary mask z give torch.cat([torch.zeros_like(z), z], 1)"
        )
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"{names[0]} must have 2 to {MOST_CLASSES} classes, got {classes}")
    checks.boolean("align_corners", align_corners)
    return op.Inputs(
        [map.detach() for map in maps], _check_flipped(flipped, len(maps)), _shares(weights, len(maps)), align_corners
    )


def _choose(inputs: op.Inputs, backend: str | None) -> str:
    first = inputs.maps[0]
    return choose("predict", first.device, first.dtype, backend, volume=is_volume(first))


def _read_first(inputs: op.Inputs, width: int) -> op.Inputs:
    """Aligned corners read a single column at 0: for a mirrored map the last column, where kernels read the first."""
    if width != 1 or not inputs.align_corners:
        return inputs
    maps = [map[..., -1:] if flipped else map for map, flipped in zip(inputs.maps, inputs.flipped, strict=True)]
    return inputs._replace(maps=maps, flipped=[False] * len(maps))


def _check_flipped(flipped: bool | Sequence[bool], count: int) -> list[bool]:
    if isinstance(flipped, bool):
        return [flipped] * count
    if not isinstance(flipped, (list, tuple)) or not all(isinstance(f, bool) for f in flipped):
        raise TypeError(f"flipped must be a bool, or one for each map, got {flipped!r}")
    if len(flipped) != count:
        raise ValueError(f"flipped must have one entry for each of {count} maps, got {len(flipped)}")
    return list(flipped)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights over their sum."""
    if weights is None:
        return [1 / count] * count
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights must be a sequence of numbers, one for each map, got {type(weights).__name__}")
    if len(weights) != count:
        raise ValueError(f"weights must have one entry for each of {count} maps, got {len(weights)}")
    for i, weight in enumerate(weights):
        checks.number(f"weights[{i}]", weight, 0.0)
    total = float(sum(weights))
    if total == 0:
        raise ValueError(f"weights must have a positive sum, got {list(weights)}")
    return [weight / total for weight in weights]


def _check_size(size: Sequence[int], first: Tensor) -> list[int]:
    if not isinstance(size, (list, tuple)) or len(size) != first.ndim - 2:
        axes = "(D, H, W)" if is_volume(first) else "(H, W)"
        raise ValueError(f"size must be {axes} for logits {tuple(first.shape)}, got {size!r}")
    for i, value in enumerate(size):
        checks.integer(f"size[{i}]", value, 1, 2**31 - 1)
    return list(size)


def _check_dtype(dtype: torch.dtype | None, classes: int) -> torch.dtype:
    if dtype is None:
        return next(d for d in LABEL_DTYPES if classes - 1 <= torch.iinfo(d).max)
    if dtype not in LABEL_DTYPES:
        raise TypeError(f"out_dtype must be one of {checks.dtype_names(LABEL_DTYPES)}, got {dtype}")
    if classes - 1 > torch.iinfo(dtype).max:
        raise ValueError(f"out_dtype must hold the classes up to {classes - 1}, got {dtype}")
    return dtype
