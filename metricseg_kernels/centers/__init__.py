"""Pixels against class centers: class means, similarity of each pixel to each center, and losses on both."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import MOST_CLASSES, IgnoreIndex, check_labels, is_bad, resolve_ignore_index
from ..core.library import ops
from ..core.product import product
from ..core.unit import unit
from . import reference
from .folding import fold
from .means import EPS
from .pull import mean_of_present

METRICS = ("cosine", "dot", "euclidean")
AVERAGES = ("mass", "area")


@overload
def class_centers(
    features: Tensor,
    assignment: Tensor,
    *,
    num_classes: int | None = ...,
    average: str = ...,
    ignore_index: IgnoreIndex = ...,
    return_present: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def class_centers(
    features: Tensor,
    assignment: Tensor,
    *,
    num_classes: int | None = ...,
    average: str = ...,
    ignore_index: IgnoreIndex = ...,
    return_present: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def class_centers(
    features: Tensor,
    assignment: Tensor,
    *,
    num_classes: int | None = None,
    average: str = "mass",
    ignore_index: IgnoreIndex = "auto",
    return_present: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The mean feature of every class in every image, with soft or hard membership.

        f_k = sum_i M_ik x_i / (sum_i M_ik + 1e-6)        average="mass"
        f_k = sum_i M_ik x_i / (h w)                      average="area"

    over the pixels i of an image, where M_ik = softmax_k(logits_i) for logits, and 1 for the label of i, else 0, for
    labels. The features are read once, in place; the softmax is never written.

    Args:
        features: [B, C, h, w]; float64, float32, bfloat16 or float16; NCHW, channels-last or strided, read in place.
            Sums are in float32 (float64 for float64).
        assignment: logits [B, K, h, w], floating (float64 if and only if features are), soft membership; or labels
            [B, h, w], uint8, int32 or int64, hard membership.
        num_classes: K, at most 65536; needed with labels.
        average: what a sum of features is divided by, see above.
        ignore_index: label of pixels that are in no class; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        return_present: also return which classes have a pixel, or any mass.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [B, K, C] centers in the dtype of features; with `return_present` also [B, K] bool. An absent class has a zero
        center. Gradient to features and logits; it has their memory format.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. A label
            that is neither ignore_index nor in [0, K) raises on the CPU; on CUDA the centers of its image are NaN, and
            with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Wu et al. 2023 (class center similarity); Zhang et al., ACFNet, ICCV 2019 (soft class centers).
    """
    checks.tensor("features", features, 4, checks.FLOATS, "[B, C, h, w]")
    checks.choice("average", average, AVERAGES)
    checks.boolean("return_present", return_present)
    classes = _check_assignment(features, assignment, num_classes)
    ignored = resolve_ignore_index(ignore_index, classes)
    chosen, by_mass = choose("centers", features.device, features.dtype, backend), average == "mass"
    if chosen == "reference":
        sums, mass = _class_sums(features, assignment, classes, ignored, "assignment")
        pixels = features.shape[2] * features.shape[3]
        total = mass[..., None] + EPS if by_mass else max(pixels, 1)
        centers, present = (sums / total).to(features.dtype), mass > 0
    else:
        centers, _, _, present = ops.class_means_fwd(
            features, assignment, classes, ignored, by_mass, "assignment", chosen
        )
    return (centers, present) if return_present else centers


@overload
def center_similarity(
    features: Tensor,
    centers: Tensor,
    *,
    metric: str = ...,
    scale: float = ...,
    pull_labels: None = ...,
    ignore_index: IgnoreIndex = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def center_similarity(
    features: Tensor,
    centers: Tensor,
    *,
    metric: str = ...,
    scale: float = ...,
    pull_labels: Tensor,
    ignore_index: IgnoreIndex = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def center_similarity(
    features: Tensor,
    centers: Tensor,
    *,
    metric: str = "cosine",
    scale: float = 15.0,
    pull_labels: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Similarity of each pixel to each class center: logits for `cross_entropy`, `focal_loss` or an argmax.

        z_ik = scale <x_i, w_k> / (|x_i| |w_k|)      metric="cosine"
        z_ik = scale <x_i, w_k>                      metric="dot"
        z_ik = -scale |x_i - w_k|^2                  metric="euclidean", as 2 <x, w> - |x|^2 - |w|^2

    The features are read once, in place, and their norms are taken on the way: no normalized or permuted copy exists.
    The only tensor of their size that is written is their gradient.

    Args:
        features: x, [B, C, h, w]; float64, float32, bfloat16 or float16; NCHW, channels-last or strided, read in
            place. Arithmetic is in float32 (float64 for float64); float32 products on CUDA follow
            torch.get_float32_matmul_precision().
        centers: w, [K, C] for all images, or [B, K, C], each image's own; floating (float64 if and only if features
            are).
        metric: see above.
        scale: finite, > 0.
        pull_labels: [B, h, w] labels, uint8, int32 or int64; with them `center_pull` comes from the same pass. For
            metric="cosine".
        ignore_index: label of pixels that pull nothing; see `class_centers`.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [B, K, h, w] contiguous logits in the dtype of features; with `pull_labels` also the 0-d pull. A feature or a
        center of norm 0 has the cosine 0 to everything, and a zero gradient; norms below 1e-12 count as 1e-12. A pixel
        with a NaN has NaN logits, and makes the centers' gradient NaN. The gradient of the features has their memory
        format; that of the pull goes to the features only.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. A label
            that is neither ignore_index nor in [0, K) raises on the CPU; on CUDA the pull is NaN, and with
            METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Wu et al. 2023 (class center similarity); Gidaris and Komodakis, CVPR 2018 (cosine classifier).
    """
    checks.choice("metric", metric, METRICS)
    checks.number("scale", scale, 0.0)
    if scale == 0:
        raise ValueError("scale must be > 0, got 0")
    if pull_labels is not None and metric != "cosine":
        raise ValueError(f"pull_labels needs metric='cosine', got {metric!r}")
    logits, pull = _similarity(features, centers, metric, scale, pull_labels, "pull_labels", ignore_index, backend)
    return logits if pull is None else (logits, pull)


def center_pull(
    features: Tensor, centers: Tensor, labels: Tensor, *, ignore_index: IgnoreIndex = "auto", backend: str | None = None
) -> Tensor:
    r"""Intra-class pull of pixels to the center of their class.

        mean_b mean_{k present in b} mean_{i of class k in b} (1 - cos(x_i, sg[w_k]))

    Costs a pass of `center_similarity`. If the logits are needed too, its `pull_labels` gives both from one pass.

    Args:
        features: [B, C, h, w]; see `center_similarity`.
        centers: [K, C] or [B, K, C]; no gradient goes to them.
        labels: [B, h, w]; uint8, int32 or int64.
        ignore_index: label of pixels that pull nothing; see `class_centers`.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        0-d, float32 (float64 for float64), in [0, 2]; an image without a labeled pixel counts as 0.

    Raises:
        As `center_similarity`.

    Source: Wu et al. 2023 (class center similarity).
    """
    checks.tensor("features", features, 4, checks.FLOATS, "[B, C, h, w]")
    _check_labels("labels", labels, features)
    _check_centers(features, centers)
    pull = _similarity(features, centers.detach(), "cosine", 15.0, labels, "labels", ignore_index, backend)[1]
    assert pull is not None
    return pull


def center_push(centers: Tensor, present: Tensor | None = None, margin: float = 0.0) -> Tensor:
    r"""Inter-class push of class centers away from each other, in plain PyTorch: K x K values an image.

        mean_b mean_{k present in b} 1 / (K - 1) sum_{j != k} max(0, cos(w_k, w_j) - margin)

    Args:
        centers: w, [K, C] or [B, K, C]; floating. A center of norm 0 has the cosine 0 to every other.
        present: [K] or [B, K] bool, the classes that push; None for all.
        margin: finite; the cosine up to which two centers have no push.

    Returns:
        0-d, float32 (float64 for float64); 0 for K = 1, and from an image without a class present.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got.

    Source: Wu et al. 2023 (class center similarity).
    """
    _check_center_shape(centers)
    checks.number("margin", margin, -torch.inf)
    if present is None:
        present = torch.ones(centers.shape[:-1], dtype=torch.bool, device=centers.device)
    checks.tensor("present", present, centers.ndim - 1, (torch.bool,), "[K]" if centers.ndim == 2 else "[B, K]")
    checks.same_device("present", present, "centers", centers)
    if present.shape != centers.shape[:-1]:
        raise ValueError(
            f"present {tuple(present.shape)} and centers {tuple(centers.shape)} differ in images or classes"
        )
    classes = centers.shape[-2]
    w = unit(centers.to(checks.accumulator(centers.dtype)), -1)
    close = (product(w, w.mT) - margin).relu() * (1 - torch.eye(classes, dtype=w.dtype, device=w.device))
    near = close.sum(-1) / max(classes - 1, 1)
    return mean_of_present(near.reshape(-1, classes), present.reshape(-1, classes))


def _similarity(
    features: Tensor,
    centers: Tensor,
    metric: str,
    scale: float,
    labels: Tensor | None,
    name: str,
    ignore_index: IgnoreIndex,
    backend: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Logits, and the pull if there are labels, an argument of this name."""
    checks.tensor("features", features, 4, checks.FLOATS, "[B, C, h, w]")
    _check_centers(features, centers)
    ignored = resolve_ignore_index(ignore_index, centers.shape[-2])
    if labels is not None:
        _check_labels(name, labels, features)
    chosen = choose("centers", features.device, features.dtype, backend)
    if chosen != "reference":
        weights, bias = fold(centers, metric, scale, chosen)
        logits, pull, *_ = ops.pixels_to_centers_fwd(
            features, weights, bias, labels, metric, scale, ignored, name, chosen
        )
        return logits, None if labels is None else pull
    logits, target_similarity = reference.similarity(features, centers, metric, scale, labels, ignored)
    if labels is None:
        return logits, None
    sums, mass = _class_sums(target_similarity[:, None], labels, centers.shape[-2], ignored, name)
    far = 1 - sums[..., 0] / (scale * mass.clamp(min=1))  # [B, K]
    return logits, mean_of_present(far, mass > 0)


def _class_sums(
    features: Tensor, assignment: Tensor, classes: int, ignore_index: int, name: str
) -> tuple[Tensor, Tensor]:
    """Sums [B, K, C] and mass [B, K] by the reference; NaN sums in images with a label out of range."""
    hard = not assignment.is_floating_point()
    if hard and not torch.compiler.is_compiling():
        check_labels(assignment, classes, ignore_index, name)
    sums, mass = reference.class_sums(features, assignment, classes, ignore_index)
    if hard and not checks.validates(features.device):
        bad = is_bad(assignment, classes, ignore_index).flatten(1).any(1)
        sums = sums.masked_fill(bad[:, None, None], torch.nan)
    return sums, mass


def _check_assignment(features: Tensor, assignment: Tensor, num_classes: int | None) -> int:
    """The number of classes."""
    if isinstance(assignment, Tensor) and not assignment.is_floating_point():
        if num_classes is None:
            raise ValueError("num_classes is needed with labels, got None")
        _check_labels("assignment", assignment, features)
    else:
        checks.tensor("assignment", assignment, 4, checks.FLOATS, "logits [B, K, h, w] or labels [B, h, w]")
        checks.same_device("assignment", assignment, "features", features)
        _check_precision("assignment", assignment, features)
        if assignment.shape[0] != features.shape[0] or assignment.shape[2:] != features.shape[2:]:
            raise ValueError(
                f"assignment {tuple(assignment.shape)} and features {tuple(features.shape)} differ in images or pixels"
            )
        if num_classes is not None and num_classes != assignment.shape[1]:
            raise ValueError(
                f"num_classes is {num_classes}, but assignment holds logits of {assignment.shape[1]} classes"
            )
        num_classes = assignment.shape[1]
    checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    return num_classes


def _check_labels(name: str, labels: Tensor, features: Tensor) -> None:
    checks.tensor(name, labels, 3, checks.LABELS, "[B, h, w]")
    checks.same_device(name, labels, "features", features)
    if labels.shape != (features.shape[0], *features.shape[2:]):
        raise ValueError(
            f"{name} {tuple(labels.shape)} and features {tuple(features.shape)} differ in images or pixels"
        )


def _check_center_shape(centers: Tensor) -> None:
    if not (isinstance(centers, Tensor) and centers.ndim == 2):
        checks.tensor("centers", centers, 3, checks.FLOATS, "[K, C] or [B, K, C]")
    checks.tensor("centers", centers, centers.ndim, checks.FLOATS, "[K, C]")
    if centers.shape[-2] < 1:
        raise ValueError(f"centers must hold at least one class, got shape {tuple(centers.shape)}")


def _check_centers(features: Tensor, centers: Tensor) -> None:
    _check_center_shape(centers)
    checks.same_device("centers", centers, "features", features)
    _check_precision("centers", centers, features)
    if centers.shape[-1] != features.shape[1]:
        raise ValueError(f"centers {tuple(centers.shape)} and features {tuple(features.shape)} differ in channels")
    if centers.ndim == 3 and centers.shape[0] != features.shape[0]:
        raise ValueError(f"centers {tuple(centers.shape)} and features {tuple(features.shape)} differ in images")


def _check_precision(name: str, value: Tensor, features: Tensor) -> None:
    if (value.dtype == torch.float64) != (features.dtype == torch.float64):
        raise TypeError(f"{name} is {value.dtype}, features {features.dtype}; both must be float64, or neither")
