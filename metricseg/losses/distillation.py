"""Distillation of a teacher's class probabilities, over `metricseg_kernels.distillation_loss`."""

from __future__ import annotations

from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES, Loss
from metricseg_kernels.core import checks
from metricseg_kernels.core.labels import IgnoreIndex


@LOSSES.register("distillation")
class DistillationLoss(Loss):
    """Divergence of a student's class probabilities from a teacher's, at the labels' resolution: T^2 KL(q || p) with
    p = softmax(z / T) of the student, q of the teacher.

    Args:
        temperature: T > 0.
        kind: "kl", "reverse_kl" for T^2 KL(p || q), or "js" for T^2 times the Jensen-Shannon divergence.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        reduction: "mean" over the valid pixels, "sum" or "none".
        align_corners: of the interpolation of both maps.
        loss_weight: factor of the result.
        loss_name: key under which a host logs the loss.
        backend: "reference", "cpu", "triton", "cuda"; None for the first that can run.

    Raises ValueError for a temperature that is not > 0, and for another kind or reduction. All other arguments are
    checked by the kernel.

    Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        kind: str = "kl",
        *,
        ignore_index: IgnoreIndex = "auto",
        reduction: str = "mean",
        align_corners: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = "loss_distill",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.real("temperature", temperature)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it takes a finite number > 0")
        if kind not in ("kl", "reverse_kl", "js"):
            raise ValueError(f'kind is {kind!r}; it takes "kl", "reverse_kl" or "js"')
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction is {reduction!r}; it takes "mean", "sum" or "none"')
        self.temperature, self.kind, self.ignore_index, self.reduction = temperature, kind, ignore_index, reduction
        self.align_corners, self.loss_weight, self.loss_name, self.backend = (
            align_corners, loss_weight, loss_name, backend,
        )  # fmt: skip

    def forward(self, input: Tensor, teacher: Tensor, target: Tensor | tuple[int, int]) -> Tensor:
        """The loss of the student's logits [B, K, h, w] against the teacher's [B, K, h2, w2]; a scalar, or [B, H, W]
        without reduction.

        Args:
            target: labels [B, H, W], which only tell the pixels that take part, or a size (H, W).
        """
        return self.loss_weight * kernels.distillation_loss(
            input, teacher, target, temperature=self.temperature, kind=self.kind, ignore_index=self.ignore_index,
            reduction=self.reduction, align_corners=self.align_corners, backend=self.backend,
        )  # fmt: skip
