"""Mean intersection over union, and prediction at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from metricseg.data.base import IGNORE
from metricseg.models.base import Segmenter
from metricseg.models.layers import resize

S = TypeVar("S", bound="IoU")


class IoU(MulticlassConfusionMatrix):
    """Intersection over union of each class, summed over all pixels seen: IoU_k = hits_k / (predicted_k + labeled_k
    - hits_k).

    `update(predicted [B, H, W], labels [B, H, W])` takes integer labels of any kind and ignores 255; any other value
    outside [0, K) raises ValueError. `compute()` gives [K] in [0, 1], NaN for a class that was neither labeled nor
    predicted. `nanmean` of it is the mIoU.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=IGNORE, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        target = target.as_subclass(Tensor).long()
        for name, classes in (("predicted", preds), ("labels", target[target != IGNORE])):
            outside = classes[(classes < 0) | (classes >= self.num_classes)]
            if outside.numel():
                raise ValueError(f"{name} must be in [0, {self.num_classes}), got {int(outside[0])}")
        super().update(preds, target)

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

    def update(self, preds: Tensor, target: Tensor) -> None:
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


def predict_probabilities(
    model: Segmenter,
    images: Tensor,
    size: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities [B, K, *size], the mean over resized and, with `flip`, mirrored copies of the pictures.

    Args:
        images: [B, 3, H, W], normalized.
        size: (height, width) of the result; that of the pictures unless given.
        scales: factors on the pictures' size.
        flip: also predict the mirror picture at every scale.

    Raises ValueError if there is no scale, or one that is no factor.
    """
    check_scales(scales)
    height, width = images.shape[-2:]
    size = size or (height, width)
    total: Tensor | None = None
    for scale in scales:
        view = images if scale == 1 else resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        for mirrored in (False, True) if flip else (False,):
            logits = model.predict(view.flip(-1) if mirrored else view, size)
            probabilities = torch.softmax(logits.flip(-1) if mirrored else logits, 1)
            total = probabilities if total is None else total + probabilities
    assert total is not None
    return total / (len(scales) * (2 if flip else 1))
