"""Mean intersection over union, and prediction at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from metricseg.data.base import IGNORE
from metricseg.models.base import Segmenter
from metricseg.models.layers import resize
from metricseg_kernels import confusion_matrix, predict_labels

S = TypeVar("S", bound="IoU")


class Views(NamedTuple):
    """Logits [B, K, h, w] of copies of the same pictures, at the network's resolution, and which are mirrored."""

    logits: list[Tensor]
    flipped: list[bool]

    def labels(self, size: tuple[int, int]) -> Tensor:
        """Classes [B, *size] of the largest mean probability, in the smallest integer dtype from uint8 on."""
        return predict_labels(self.logits, size, flipped=self.flipped)


class IoU(MulticlassConfusionMatrix):
    """Intersection over union of each class, summed over all pixels seen: IoU_k = hits_k / (predicted_k + labeled_k
    - hits_k).

    `update(predicted [B, H, W], labels [B, H, W])` takes integer labels of any kind and ignores 255; any other value
    outside [0, K) raises ValueError. In place of predictions it takes `Views`, which it counts without making them.
    `compute()` gives [K] in [0, 1], NaN for a class that was neither labeled nor predicted. Its `nanmean` is the mIoU.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=IGNORE, validate_args=False)

    def update(self, preds: Tensor | Views, target: Tensor) -> None:
        """Add a batch."""
        target = target.as_subclass(Tensor)
        if target.dtype not in (torch.uint8, torch.int32, torch.int64):  # the kernel reads these in place
            target = target.long()
        self._check("labels", target[target != IGNORE])
        if isinstance(preds, Views):
            self.confmat += confusion_matrix(preds.logits, target, flipped=preds.flipped, ignore_index=IGNORE)
        else:
            self._check("predicted", preds)
            super().update(preds, target.long())

    def _check(self, name: str, classes: Tensor) -> None:
        outside = classes[(classes < 0) | (classes >= self.num_classes)]
        if outside.numel():
            raise ValueError(f"{name} must be in [0, {self.num_classes}), got {int(outside[0])}")

    def compute(self) -> Tensor:
        """[K], see above."""
        matrix = super().compute().double()
        hits = matrix.diag()
        return hits / (matrix.sum(0) + matrix.sum(1) - hits)


class BoundaryIoU(IoU):
    """`IoU` over the pixels near a label border, where a decoder shows what it is worth.

    A pixel counts if a pixel of another label, 255 aside, is at most `width` rows and columns away (a trimap).

    Args:
        num_classes: K.
        width: pixels, at least 1.

    Raises ValueError for a `width` out of range.

    Source: Kohli et al., Robust Higher Order Potentials for Enforcing Label Consistency, IJCV 2009 (trimaps).
    """

    def __init__(self, num_classes: int, width: int = 3) -> None:
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width is {width!r}; it takes pixels, an integer >= 1")
        super().__init__(num_classes)
        self.width = width

    def update(self, preds: Tensor | Views, target: Tensor) -> None:
        """Add a batch."""
        target = target.as_subclass(Tensor).long()
        super().update(preds, torch.where(near_border(target, self.width), target, IGNORE))


def near_border(labels: Tensor, width: int) -> Tensor:
    """Bool [B, H, W], whether a pixel of another label is at most `width` rows and columns away; 255 is no label."""
    ignored = labels == IGNORE
    highest, lowest = (
        sign * F.max_pool2d((sign * labels).float().masked_fill(ignored, -math.inf), 2 * width + 1, 1, width)
        for sign in (1, -1)
    )
    return ~ignored & ((highest != labels) | (lowest != labels))


def check_scales(scales: Sequence[float]) -> None:
    """Raise ValueError unless `scales` are factors on a picture's size."""
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales is {scales}; it takes at least one factor, finite and > 0")


def predict_views(model: Segmenter, images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False) -> Views:
    """Logits of resized and, with `flip`, mirrored copies of the pictures.

    Args:
        images: [B, 3, H, W], normalized.
        scales: factors on the pictures' size.
        flip: also predict the mirror picture at every scale.

    Raises ValueError if there is no scale, or one that is no factor.
    """
    check_scales(scales)
    height, width = images.shape[-2:]
    views = Views([], [])
    for scale in scales:
        view = images if scale == 1 else resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        for mirrored in (False, True) if flip else (False,):
            views.logits.append(model(view.flip(-1) if mirrored else view))
            views.flipped.append(mirrored)
    return views


def predict_probabilities(
    model: Segmenter,
    images: Tensor,
    size: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities [B, K, *size], the mean over the copies of `predict_views`, whose arguments and errors these
    are. `size` is (H, W) unless given. `Views.labels` needs no tensor of this size."""
    size = size or (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    views = predict_views(model, images, scales, flip)
    for logits, mirrored in zip(*views, strict=True):
        large = resize(logits.float(), size)
        probabilities = torch.softmax(large.flip(-1) if mirrored else large, 1)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total / len(views.logits)
