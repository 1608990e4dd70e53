"""Losses of low-resolution logits [B, K, h, w] against full-resolution labels [B, H, W].

The bilinear interpolation between them happens inside the kernel, so a model need not upsample. Logits that are at
label size already work as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES, Loss
from metricseg_kernels.core import checks
from metricseg_kernels.core.labels import IgnoreIndex

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PixelOptions(TypedDict, total=False):
    """The keyword arguments of every `PixelLoss`."""

    class_weight: Sequence[float] | Tensor | None
    weight: Sequence[float] | Tensor | None
    ignore_index: IgnoreIndex
    reduction: str
    align_corners: bool
    loss_weight: float
    loss_name: str
    backend: str | None


class PixelLoss(Loss):
    """Base of the pixel losses: class weights, the loss's own weight, and `metricseg.losses`' call conventions.

    Args:
        class_weight: [K] factor of each class, kept as the buffer `class_weight`; None for 1. It is configuration and
            not in the state dict; one in the state dict of an older version is ignored.
        weight: another name of `class_weight`, torch.nn.CrossEntropyLoss's.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        reduction: "mean", "sum" or "none".
        align_corners: of the interpolation.
        loss_weight: factor of the result.
        loss_name: key under which a host logs the loss; mmsegmentation adds losses whose name begins with `loss_`.
        backend: "reference", "cpu", "triton", "cuda"; None for the first that can run.

    Raises ValueError for class weights that are no finite non-negative vector, or given under both names. All other
    arguments are checked by the kernel.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: IgnoreIndex = "auto",
        reduction: str = "mean",
        align_corners: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = "loss_seg",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction is {reduction!r}; it takes "mean", "sum" or "none"')
        if weight is not None:
            if class_weight is not None:
                raise ValueError("class_weight and weight are two names of one argument; both are given")
            class_weight = weight
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=torch.float32)
            if class_weight.ndim != 1 or not bool((class_weight.isfinite() & (class_weight >= 0)).all()):
                raise ValueError(f"class_weight is {class_weight}; it takes one finite factor >= 0 for each class")
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.ignore_index, self.reduction, self.align_corners = ignore_index, reduction, align_corners
        self.loss_weight, self.loss_name, self.backend = loss_weight, loss_name, backend

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(f"{prefix}class_weight", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """The loss of logits [B, K, h, w] against labels [B, H, W]; a scalar, or [B, H, W] without reduction. Volumes
        are taken as well, [B, K, d, h, w] against [B, D, H, W].

        Args:
            weight: factor of each pixel, [B, H, W] or [B, 1, H, W]; the mean still divides by what it divides by
                without them.
            avg_factor: what "mean" divides by.
            reduction_override, ignore_index: in place of the module's own.
        """
        options = {
            "reduction": reduction_override or self.reduction,
            "avg_factor": avg_factor,
            "pixel_weight": weight,
            "ignore_index": self.ignore_index if ignore_index is None else ignore_index,
        }
        return self.loss_weight * self.compute(input, target, **options)

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The kernel's call; options are reduction, avg_factor, pixel_weight and ignore_index."""
        raise NotImplementedError


@LOSSES.register("focal")
class FocalLoss(PixelLoss):
    """Softmax focal loss: per pixel weight[t] (1 - p)^gamma (-log p), p the probability of the pixel's label t.

    Args:
        gamma: focusing exponent, >= 0; 0 is cross-entropy.
        label_smoothing: in [0, 1].
        normalizer: "mean" divides by the count of valid pixels ("valid") or by the sum of their class weights
            ("weight").
        options: see `PixelLoss`.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection; in its multi-class form.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        normalizer: str = "valid",
        **options: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**options)
        checks.real("gamma", gamma)
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma is {gamma}; it takes a finite number >= 0")
        self.gamma, self.label_smoothing, self.normalizer = gamma, label_smoothing, normalizer

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.focal_loss`."""
        return kernels.focal_loss(
            input, target, gamma=self.gamma, weight=self.class_weight, label_smoothing=self.label_smoothing,
            normalizer=self.normalizer, align_corners=self.align_corners, backend=self.backend, **options,
        )  # fmt: skip


@LOSSES.register("cross_entropy")
class CrossEntropyLoss(FocalLoss):
    """Cross-entropy, equal to F.cross_entropy on upsampled logits: focal with gamma 0, whose mean divides by the sum
    of class weights.

    Args:
        weight: [K] factor of each class; `class_weight` is the same.
        label_smoothing: in [0, 1].
        options: see `PixelLoss`.
    """

    def __init__(
        self,
        weight: Sequence[float] | Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        **options: Unpack[PixelOptions],
    ) -> None:
        super().__init__(0.0, label_smoothing, "weight", weight=weight, **options)


@LOSSES.register("sigmoid_focal")
class SigmoidFocalLoss(PixelLoss):
    """One-vs-rest focal loss: for each pixel and class alpha_t (1 - p_t)^gamma (-log p_t), p_t the probability of the
    right answer.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: weight of positives, 1 - alpha of negatives; negative for none.
        options: see `PixelLoss`, except `class_weight`. Targets may also be dense, [B, K, H, W]. With one class (K = 1)
            targets [B, H, W] are a binary mask of it, 0 and 1. Without reduction the result has a class axis.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection; torchvision.ops.sigmoid_focal_loss.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, **options: Unpack[PixelOptions]) -> None:
        if options.get("class_weight") is not None or options.get("weight") is not None:
            raise ValueError(
                "class_weight has no meaning for SigmoidFocalLoss; alpha weighs positives against negatives"
            )
        super().__init__(**options)
        self.gamma, self.alpha = gamma, alpha

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.sigmoid_focal_loss`."""
        maps = isinstance(input, Tensor) and input.ndim in (4, 5) and isinstance(target, Tensor)
        if maps and input.shape[1] == 1 and target.ndim == input.ndim - 1:  # an index among one class would be 0 alone
            target = target[:, None]
        return kernels.sigmoid_focal_loss(
            input, target, gamma=self.gamma, alpha=self.alpha, align_corners=self.align_corners, backend=self.backend,
            **options,
        )  # fmt: skip


@LOSSES.register("ohem_cross_entropy")
class OhemCrossEntropyLoss(PixelLoss):
    """Cross-entropy of the hard pixels: those whose label's probability is below `thresh`, and at least the
    `min_kept` least probable.

    Args:
        thresh: probability in (0, 1].
        min_kept: pixels, over the whole batch.
        top_k_percent: share in (0, 1] of all pixels, ignored ones included, in place of thresh and min_kept: the mean
            over so many hardest pixels, as in detectron2's `hard_pixel_mining` (0.2).
        options: see `PixelLoss`. The reduction is always the mean over the kept pixels, so pixel weights and
            `avg_factor` raise ValueError.

    Source: Shrivastava et al. 2016, Training Region-based Object Detectors with Online Hard Example Mining; HRNet's
        segmentation form.
    """

    def __init__(
        self,
        thresh: float = 0.7,
        min_kept: int = 100_000,
        top_k_percent: float | None = None,
        **options: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**options)
        self.thresh, self.min_kept, self.top_k_percent = thresh, min_kept, top_k_percent

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.ohem_cross_entropy`."""
        check_plain_mean(self, options)
        return kernels.ohem_cross_entropy(
            input, target, thresh=self.thresh, min_kept=self.min_kept, top_k_percent=self.top_k_percent,
            weight=self.class_weight, ignore_index=options["ignore_index"], align_corners=self.align_corners,
            backend=self.backend,
        )  # fmt: skip


def check_plain_mean(loss: PixelLoss, options: dict[str, Any]) -> None:
    """Raise ValueError if options change the mean of a loss that has its own."""
    if options["reduction"] != "mean" or options["avg_factor"] is not None or options["pixel_weight"] is not None:
        raise ValueError(f'{type(loss).__name__} has a mean of its own: reduction "mean", no weight, no avg_factor')
