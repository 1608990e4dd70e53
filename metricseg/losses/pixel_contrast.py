"""Losses of pixel embeddings [B, D, h, w] against each other, under full-resolution labels [B, H, W].

The call is ContrastiveSeg's, `loss(embeddings, labels, predictions)`. Which pixels take part is chosen without a host
sync, the matrix of all pairs never exists. If a batch has no pairs, the loss is 0 (still differentiable).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES
from metricseg.losses.pairs import PairLoss
from metricseg.losses.pixel_memory import PixelMemory
from metricseg.utils import distributed
from metricseg.utils.labels import check_labels, check_maps, nearest
from metricseg_kernels.core import checks
from metricseg_kernels.core.labels import IgnoreIndex, resolve_ignore_index

if TYPE_CHECKING:
    from typing_extensions import Unpack

SAMPLINGS = ("hard", "random", "semi_hard", "boundary", "all")
CHOICE = ("max_samples", "max_views", "min_pixels", "threshold", "radius")  # arguments of sample_anchors


class ContrastOptions(TypedDict, total=False):
    """The keyword arguments of every `ContrastLoss`."""

    sampling: str
    max_samples: int
    max_views: int
    min_pixels: int | None
    threshold: float
    radius: int
    num_classes: int | None
    ignore_index: IgnoreIndex
    normalize: bool
    warmup_iters: int
    gather: str | None
    loss_weight: float
    loss_name: str
    backend: str | None


class ContrastLoss(PairLoss):
    """Base of the pixel contrast losses: rows of an embedding map, warm-up, and the weight of the loss.

    Args:
        sampling: which pixels take part. "hard", "random", "semi_hard" and "boundary" choose at most `max_samples`, see
            `metricseg_kernels.sample_anchors`; "all" takes every pixel that has a label.
        max_samples, max_views, min_pixels, threshold, radius: of the choice.
        num_classes: labels lie in [0, num_classes); None for 256 (uint8 labels) or 1024.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255, unless num_classes is more.
        normalize: bring embeddings to unit norm; one of norm 0 stays 0. False takes them as they are.
        warmup_iters: for so many forwards in training mode the loss is 0, with a zero gradient; counted in the buffer
            `iterations`. A state dict without it, of an older version, leaves the count as it is.
        gather: "all" contrasts with the pixels of all ranks, None with this rank's own.
            Without a process group both are the same. Every rank must have the same batch size.
        loss_weight: factor of the result.
        loss_name: key under which a host logs the loss.
        backend: of the contrast kernels: "reference", "cpu", "triton", "cuda"; None for the first that can run.

    Raises ValueError for an argument out of range; what a kernel takes is checked at the first call.
    """

    iterations: Tensor

    def __init__(
        self,
        *,
        sampling: str = "hard",
        max_samples: int = 1024,
        max_views: int = 100,
        min_pixels: int | None = None,
        threshold: float = 0.7,
        radius: int = 2,
        num_classes: int | None = None,
        ignore_index: IgnoreIndex = "auto",
        normalize: bool = True,
        warmup_iters: int = 0,
        gather: str | None = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_contrast",
        backend: str | None = None,
    ) -> None:
        super().__init__(gather, backend)
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {sampling!r}; it takes one of {', '.join(SAMPLINGS)}")
        self.sampling, self.num_classes, self.normalize = sampling, num_classes, normalize
        self.ignore_index, self.ignored = ignore_index, resolve_ignore_index(ignore_index, num_classes)
        self.max_samples, self.max_views, self.min_pixels = max_samples, max_views, min_pixels
        self.threshold, self.radius = threshold, radius
        self.warmup_iters, self.loss_weight, self.loss_name = warmup_iters, loss_weight, loss_name
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}iterations", self.iterations)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(
        self, feats: Tensor, labels: Tensor, predict: Tensor | None = None, *, seed: int | None = None
    ) -> Tensor:
        """The loss, 0-d, of embeddings [B, D, h, w] under labels [B, H, W].

        Labels and predictions are brought to (h, w) by taking the pixels that F.interpolate(mode="nearest") takes.

        Args:
            predict: predicted classes [B, h, w], or logits [B, K, h, w]. sampling "hard" needs them, "semi_hard" needs
                logits; they carry no gradient.
            seed: of the choice; None draws one from torch's generator.

        Raises TypeError or ValueError for an argument of wrong type, dtype, shape or device, naming it and what it got.
        """
        others = () if predict is None else (("predict", predict, (3, 4), "[B, h, w] or [B, K, h, w]"),)
        check_maps("feats", feats, "[B, D, h, w]", "labels", labels, others)
        labels = nearest(labels, feats.shape[-2:])
        rows, row_labels = self.rows(feats, labels, predict, seed)
        loss = self.compute(rows, row_labels)
        if self.warmup_iters:
            loss = torch.where(self.iterations >= self.warmup_iters, loss, 0.0)
        if self.training:
            self.iterations += 1
        self.after(feats, labels, seed)
        return self.loss_weight * loss

    def rows(self, feats: Tensor, labels: Tensor, predict: Tensor | None, seed: int | None) -> tuple[Tensor, Tensor]:
        """(rows [R, D], labels [R] int64, -1 for rows that take no part); labels are [B, h, w]."""
        if self.sampling == "all":
            check_labels(labels, self.num_classes, self.ignored)
            index = torch.arange(labels.numel(), device=labels.device)
            chosen = labels.reshape(-1).long()
            chosen = torch.where(chosen == self.ignored, -1, chosen)
        else:
            predict, confidence = read_predictions(predict, labels, self.sampling)
            index, chosen, _ = kernels.sample_anchors(
                labels, predict, strategy=self.sampling, confidence=confidence, num_classes=self.num_classes,
                ignore_index=self.ignored, seed=seed, **{name: getattr(self, name) for name in CHOICE},
            )  # fmt: skip
        return self.rows_of(feats, index, self.normalize), chosen

    def why_none(self) -> str:
        """See `PairLoss`."""
        if self.sampling == "all" or not self.nothing_chosen:
            return super().why_none()
        least = self.max_views if self.min_pixels is None else self.min_pixels
        return (
            f"no class has more than {least} labeled pixels in an image, at the resolution of the embedding; lower "
            f"min_pixels (now {self.min_pixels}; None for max_views) or max_views (now {self.max_views})"
        )

    def compute(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The loss of rows that are chosen, of a batch or, with `gather`, of those of all ranks."""
        raise NotImplementedError

    def after(self, feats: Tensor, labels: Tensor, seed: int | None) -> None:
        """Work that follows the loss."""


@LOSSES.register("pixel_contrast")
class PixelContrastLoss(ContrastLoss):
    """Pixel-to-pixel InfoNCE under class labels; ContrastiveSeg's loss.

    With s_ij = <x_i, y_j> / temperature, positives p of anchor i the other rows of its class, negatives n the rows of
    other classes:

        l_i = -(temperature / base_temperature) mean_p log( exp s_ip / (exp s_ip + sum_n exp s_in) ),

    averaged over the anchors that have a positive. No such anchor, e.g. a batch full of `ignore_index`: 0.

    ContrastiveSeg's configuration maps to the arguments of the same names: temperature, base_temperature, max_samples,
    max_views, warmup_iters, loss_weight, with_memory, memory_size, pixel_update_freq, proj_dim; `ce_ignore_index` is
    `ignore_index` and `num_classes` stands in its `data` section; `stride`, `use_rmi` and `use_lovasz` belong to the
    network and the other loss. `predict` is `seg.argmax(1)`, or `seg` itself.

    Args:
        temperature, base_temperature: > 0; base_temperature None for a factor of 1.
        denominator: "negatives" as above, or "all": every row but the anchor itself (SupCon).
        balance: "classes" gives anchors and contrast rows the weights 1 / (number of rows of the class in their set, of
            all ranks with `gather`): every class counts once in the average, and in the denominator the sum over the
            rows of a class becomes their mean. With "all" this is Zhu et al.'s loss without its class prototypes. The
            scale differs from that of None even if all classes have n rows: "all" is lower by c log n, with the same
            gradient; under "negatives" n_i is lower by log n. None: every row counts once.
        with_memory: contrast with a `PixelMemory` of earlier images instead of the batch itself. It takes this batch's
            rows after the loss is computed, in training mode; while it is empty the loss is 0.
        memory_size, pixel_update_freq, proj_dim: its rows a ring, pixels of one class an image gives, and D. It needs
            `num_classes`.
        options: see `ContrastLoss`.

    Source: Wang et al., Exploring Cross-Image Pixel Contrast for Semantic Segmentation, ICCV 2021, and its repository
    tfzhou/ContrastiveSeg. Equal to it, gradients included, if that is finite. Balance: Zhu et al., Balanced Contrastive
    Learning for Long-Tailed Visual Recognition, CVPR 2022.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float | None = 0.07,
        denominator: str = "negatives",
        with_memory: bool = False,
        memory_size: int = 5000,
        pixel_update_freq: int = 10,
        proj_dim: int = 256,
        balance: str | None = None,
        **options: Unpack[ContrastOptions],
    ) -> None:
        super().__init__(**options)
        for name, value in (("temperature", temperature), ("base_temperature", base_temperature)):
            if value is None and name == "base_temperature":
                continue
            checks.real(name, value)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it takes a finite number > 0")
        if denominator not in ("negatives", "all"):
            raise ValueError(f'denominator is {denominator!r}; it takes "negatives" or "all"')
        if balance not in (None, "classes"):
            raise ValueError(f'balance is {balance!r}; it takes "classes" or None')
        self.temperature, self.base_temperature, self.denominator = temperature, base_temperature, denominator
        self.balance = balance
        self.with_memory, self.memory_size, self.pixel_update_freq, self.proj_dim = (
            with_memory, memory_size, pixel_update_freq, proj_dim,
        )  # fmt: skip
        self.memory: PixelMemory | None = None
        if with_memory:
            if self.num_classes is None:
                raise ValueError("with_memory needs num_classes, got None")
            self.memory = PixelMemory(self.num_classes, proj_dim, memory_size, pixel_update_freq)

    def rows(self, feats: Tensor, labels: Tensor, predict: Tensor | None, seed: int | None) -> tuple[Tensor, Tensor]:
        """See `ContrastLoss`; feats must have as many channels as the memory."""
        if self.memory is not None and feats.shape[1] != self.proj_dim:
            raise ValueError(f"feats have {feats.shape[1]} channels; with_memory takes proj_dim = {self.proj_dim}")
        return super().rows(feats, labels, predict, seed)

    def compute(self, rows: Tensor, labels: Tensor) -> Tensor:
        """See `metricseg_kernels.pixel_contrast_loss`."""
        if self.memory is None:
            against = self.against(rows, labels)
        else:
            self.memory.flush()
            against = dict(zip(("contrast", "contrast_labels"), self.memory.rows(), strict=True))
            rows = rows.to(against["contrast"].dtype)
        if self.balance is not None:
            against |= self.class_weights(rows, labels, against.get("contrast_labels", labels))
        loss, stats = kernels.pixel_contrast_loss(
            rows, labels, **against, temperature=self.temperature, base_temperature=self.base_temperature,
            denominator=self.denominator, reduction="sum", return_stats=True, backend=self.backend,
        )  # fmt: skip
        total, count = self.totals(loss, stats.anchors)
        if self.memory is None:
            self.warn_if_none(count)
        return total / (count.clamp(min=1) if self.balance is None else torch.where(count > 0, count, 1.0))

    def class_weights(self, rows: Tensor, labels: Tensor, contrast_labels: Tensor) -> dict[str, Tensor]:
        """Weights of anchors and of contrast rows, as arguments for the kernel."""
        everyone = contrast_labels  # the anchors of all ranks, unless there is a memory
        if self.memory is not None:
            everyone = distributed.gather_rows(labels) if self.gathers else labels
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        return {
            "anchor_weights": inverse_counts(labels, everyone, dtype),
            "contrast_weights": inverse_counts(contrast_labels, contrast_labels, dtype),
        }

    def after(self, feats: Tensor, labels: Tensor, seed: int | None) -> None:
        """Add the rows of this batch to the memory."""
        if self.memory is not None and self.training:
            self.memory.update(feats.detach(), labels, ignore_index=self.ignored, seed=seed, gather=self.gathers)


@LOSSES.register("margin_contrast")
class MarginContrastLoss(ContrastLoss):
    """Euclidean pull and push between pixels: with d_ij = |x_i - y_j|,

        mean over pairs of one class  relu(d - positive_margin)^power
        + mean over pairs of two classes  relu(margin - d)^power.

    Args:
        margin: > 0. positive_margin: >= 0. power: 1 or 2.
        average: "pairs" divides by all pairs of either kind, "nonzero" by those whose term is above 0.
        options: see `ContrastLoss`.

    Source: Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006; Jia et al. 2025 for
    segmentation.
    """

    def __init__(
        self,
        margin: float = 1.0,
        positive_margin: float = 0.0,
        power: int = 2,
        average: str = "pairs",
        **options: Unpack[ContrastOptions],
    ) -> None:
        super().__init__(**options)
        checks.real("margin", margin)
        checks.real("positive_margin", positive_margin)
        if not 0 < margin < float("inf") or not 0 <= positive_margin < float("inf"):
            raise ValueError(
                f"margin, positive_margin are {margin}, {positive_margin}; they take finite numbers > 0, >= 0"
            )
        if power not in (1, 2):
            raise ValueError(f"power is {power}; it takes 1 or 2")
        if average not in ("pairs", "nonzero"):
            raise ValueError(f'average is {average!r}; it takes "pairs" or "nonzero"')
        self.margin, self.positive_margin, self.power, self.average = margin, positive_margin, power, average

    def compute(self, rows: Tensor, labels: Tensor) -> Tensor:
        """See `metricseg_kernels.margin_contrast_loss`."""
        return self.margin_form(
            rows, labels, self.against(rows, labels), margin=self.margin, positive_margin=self.positive_margin,
            power=self.power, average=self.average,
        )  # fmt: skip


def inverse_counts(labels: Tensor, among: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (how often a label occurs in `among` [M]) of labels [R], any values >= 0; 0 for negative labels."""
    ordered = among.sort().values
    counts = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    return torch.where(labels < 0, 0.0, 1 / counts.clamp(min=1).to(dtype))


def read_predictions(predict: Tensor | None, labels: Tensor, sampling: str) -> tuple[Tensor | None, Tensor | None]:
    """(predicted classes, their probability if the sampling asks for it), both [B, h, w] as `labels` is."""
    shape = None if predict is None else tuple(predict.shape)
    if sampling == "semi_hard" and (shape is None or len(shape) != 4):
        raise ValueError(f"sampling='semi_hard' needs predict as logits [B, K, h, w], got {shape}")
    if sampling == "hard" and predict is None:
        raise ValueError("sampling='hard' needs predict, got None")
    if predict is None or sampling not in ("hard", "semi_hard"):
        return None, None
    confidence = None
    if predict.ndim == 4:
        predict = predict.detach()
        if sampling == "semi_hard":
            confidence = nearest(predict.softmax(1).amax(1), labels.shape[-2:])
        predict = predict.argmax(1)
    return nearest(predict, labels.shape[-2:]), confidence
