"""Losses of regions: Dice, Tversky, Jaccard, Dice with cross-entropy, and Lovasz, over `metricseg_kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES
from metricseg.losses.classification import PixelLoss, PixelOptions, check_plain_mean
from metricseg.utils import distributed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RegionLoss(PixelLoss):
    """Base of the losses that are functions of sums over regions, at the labels' resolution.

    Args:
        average: "present" for the mean over the classes that have a pixel, "classes" over all.
        per_image: take the sums, or the order of errors, of each image, not of the batch.
        gather: "all" takes the sums over all ranks, so that W ranks equal one process with their images; None over this
            rank's own. Without a process group both are the same. Not with per_image.
        options: see `PixelLoss`. The reduction is always that mean, weighted by `class_weight`, so another one, pixel
            weights and `avg_factor` raise ValueError.
    """

    def __init__(
        self,
        average: str = "present",
        per_image: bool = False,
        gather: str | None = None,
        **options: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**options)
        if gather not in (None, "all"):
            raise ValueError(f'gather is {gather!r}; it takes "all" or None')
        if gather and per_image:
            raise ValueError('gather="all" adds the sums of all images; with per_image=True there are none')
        self.average, self.per_image, self.gather = average, per_image, gather

    def sums(self, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the kernel that all losses have; options are those of `compute`."""
        check_plain_mean(self, options)
        gathers = self.gather == "all" and distributed.ranks() > 1
        return {
            "average": self.average, "per_image": self.per_image, "weight": self.class_weight,
            "ignore_index": options["ignore_index"], "align_corners": self.align_corners, "backend": self.backend,
            "all_reduce": distributed.sum_over_ranks if gathers else None,
        }  # fmt: skip


class OverlapLoss(RegionLoss):
    """Base of the losses of one form of overlap.

    Args:
        activation: "softmax", or "sigmoid" for classes that overlap, and for a single one.
        log: -log of the score in place of 1 - score.
        label_smoothing: in [0, 1].
        smooth: >= 0, added to numerator and denominator of the score.
        options: see `RegionLoss`.
    """

    form: dict[str, Any]

    def __init__(
        self,
        activation: str = "softmax",
        log: bool = False,
        label_smoothing: float = 0.0,
        smooth: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.activation, self.log, self.label_smoothing, self.smooth = activation, log, label_smoothing, smooth

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.region_loss`."""
        return kernels.region_loss(
            input, target, **self.form, smooth=self.smooth, activation=self.activation, log=self.log,
            label_smoothing=self.label_smoothing, **self.sums(options),
        )  # fmt: skip


@LOSSES.register("dice")
class DiceLoss(OverlapLoss):
    """Soft Dice loss, 1 - mean_k (2 I_k + s) / (P_k + Y_k + s), with I = sum q y, P = sum q, Y = sum y over the pixels
    of the batch that have a label, q = softmax(z) and y one-hot.

    Args:
        options: see `OverlapLoss` and `RegionLoss`. By default s = 0, and the mean is over the classes that have a
            pixel.

    Source: Milletari et al. 2016, V-Net, in its multi-class form and without the squares.
    """

    form = {"form": "dice"}  # noqa: RUF012 (read only)


@LOSSES.register("jaccard")
class JaccardLoss(OverlapLoss):
    """Soft Jaccard (IoU) loss, 1 - mean_k (I_k + s) / (P_k + Y_k - I_k + s), see `DiceLoss`.

    Args:
        options: see `OverlapLoss` and `RegionLoss`.
    """

    form = {"form": "jaccard"}  # noqa: RUF012 (read only)


@LOSSES.register("tversky")
class TverskyLoss(OverlapLoss):
    """Tversky loss, mean_k (1 - (I_k + s) / (I_k + alpha (P_k - I_k) + beta (Y_k - I_k) + s))^exponent, see `DiceLoss`.

    Args:
        alpha, beta: weights of false positives and false negatives, >= 0.
        exponent: > 0; another than 1 is the focal Tversky loss.
        options: see `OverlapLoss` and `RegionLoss`.

    Sources: Salehi et al. 2017, Tversky loss function; Abraham and Khan 2019, A Novel Focal Tversky Loss Function.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, exponent: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.form = {"form": "tversky", "alpha": alpha, "beta": beta, "exponent": exponent}


@LOSSES.register("dice_ce")
class DiceCELoss(RegionLoss):
    """lambda_dice Dice + lambda_ce cross-entropy, both from one pass over the pixels.

    Args:
        lambda_dice, lambda_ce: factors, >= 0.
        label_smoothing: of the cross-entropy, in [0, 1].
        smooth: of the Dice score, >= 0.
        options: see `RegionLoss`; `class_weight` weighs both terms.
    """

    def __init__(
        self,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        smooth: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce
        self.label_smoothing, self.smooth = label_smoothing, smooth

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.cross_entropy_dice`."""
        return kernels.cross_entropy_dice(
            input, target, lambda_ce=self.lambda_ce, lambda_dice=self.lambda_dice, smooth=self.smooth,
            label_smoothing=self.label_smoothing, **self.sums(options),
        )  # fmt: skip


@LOSSES.register("lovasz")
class LovaszLoss(RegionLoss):
    """Lovasz-softmax loss, the Lovasz extension of the Jaccard loss, by histograms of the errors in place of a sort.

    Args:
        bins: of a histogram; the loss is within 1 / bins of that of sorted errors.
        options: see `RegionLoss`.

    Source: Berman et al. 2018, The Lovasz-Softmax loss.
    """

    def __init__(self, bins: int = 512, **options: Any) -> None:
        super().__init__(**options)
        self.bins = bins

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See `metricseg_kernels.lovasz_loss`."""
        return kernels.lovasz_loss(input, target, bins=self.bins, **self.sums(options))
