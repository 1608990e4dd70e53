"""mmsegmentation 1.x: `custom_imports = dict(imports=["metricseg.integrations.mmseg"])` registers losses and heads.

`type="metricseg.CrossEntropyLoss"` is a loss under mmseg's configuration keys, for any head. `type="metricseg.FCNHead"`
is mmseg's FCNHead whose losses take its logits before the upsampling; every head that leaves the loss to BaseDecodeHead
has such a twin. With `contrast=dict(...)` it contrasts pixels too. Their registry is a child of mmseg's, so mmseg's own
names stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import metricseg_kernels as kernels
from metricseg import losses
from metricseg.integrations.low_resolution import need
from metricseg.losses import PixelContrastLoss, PixelLoss
from metricseg_kernels.core.labels import is_label, resolve_ignore_index

host = need("mmseg.models", "mmsegmentation")
Registry, MODELS = need("mmengine.registry", "mmengine").Registry, need("mmseg.registry", "mmsegmentation").MODELS
BaseDecodeHead = need("mmseg.models.decode_heads.decode_head", "mmsegmentation").BaseDecodeHead
read_weights = need("mmseg.models.losses.utils", "mmsegmentation").get_class_weight

REGISTRY = Registry("model", parent=MODELS, scope="metricseg")

# mmseg's keys that have no meaning here, and what to write
INSTEAD = {
    "align_corners": "the head's own is taken",
    "ignore_index": "the head's own is taken",
    "ignore_label": "the head's ignore_index is taken",
    "thres": "write thresh",
    "use_mask": "it is for mask classification, whose losses are mmseg's own",
    "activate": "logits are always activated by softmax",
    "naive_dice": "the denominator is always without squares",
    "eps": "nothing needs it: a class without pixels takes no part",
}
SIGMOID = 'write type="metricseg.SigmoidFocalLoss", for cross-entropy with gamma=0.0, alpha=-1.0'


class HostLoss(PixelLoss):
    """The mean and the keys of mmseg. `counts`: whether it leaves what `acc_seg` needs in `counted`."""

    avg_non_ignore, counts = True, False
    counted: tuple[Tensor, Tensor] | None = None

    def configure(self, use_sigmoid: bool, takes_sigmoid: bool, options: Mapping[str, Any], **instead: str) -> None:
        """Raise ValueError for keys and values of mmseg that this loss does not take, with what to write."""
        name = type(self).__name__
        if bool(use_sigmoid) != takes_sigmoid:
            other = 'write type="metricseg.FocalLoss"' if takes_sigmoid else SIGMOID
            raise ValueError(f"metricseg.{name} has use_sigmoid={takes_sigmoid}; for {use_sigmoid} {other}")
        words = {**INSTEAD, **instead}
        for key in options:
            if key in words and not (key == "use_mask" and not options[key]):
                raise ValueError(f"metricseg.{name} has no {key}, got {options[key]!r}; {words[key]}")

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """See `PixelLoss`. Without `avg_non_ignore` the mean divides by all pixels, ignored ones included."""
        if (reduction_override or self.reduction) == "mean" and avg_factor is None and not self.avg_non_ignore:
            avg_factor = target.numel() * self.terms(input.shape[1])
        return super().forward(input, target, weight, avg_factor, reduction_override, ignore_index)

    def terms(self, classes: int) -> int:
        """Number of terms of a pixel."""
        return 1


class SoftmaxLoss(HostLoss):
    """A loss whose kernel can count correct pixels in the same pass."""

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        if not self.counts:
            return super().compute(input, target, **options)
        loss, stats = cast(Any, super().compute(input, target, return_stats=True, **options))
        self.counted = stats.correct, stats.valid
        return cast(Tensor, loss)


@REGISTRY.register_module()
class CrossEntropyLoss(SoftmaxLoss, losses.CrossEntropyLoss):
    """mmseg's CrossEntropyLoss; `class_weight` may be a file, as there.

    With class weights the mean divides by their sum over valid pixels, whatever `avg_non_ignore` is.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        class_weight: Sequence[float] | str | None = None,
        loss_name: str = "loss_ce",
        avg_non_ignore: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        self.configure(use_sigmoid, False, options)
        options.pop("use_mask", None)
        losses.CrossEntropyLoss.__init__(
            self, read_weights(class_weight), label_smoothing=label_smoothing, loss_name=loss_name, **options
        )
        self.use_sigmoid, self.avg_non_ignore = use_sigmoid, avg_non_ignore or class_weight is not None


@REGISTRY.register_module()
class FocalLoss(SoftmaxLoss, losses.FocalLoss):
    """`metricseg.losses.FocalLoss`, which is softmax focal. mmseg's FocalLoss is "metricseg.SigmoidFocalLoss"."""

    def __init__(
        self,
        use_sigmoid: bool = False,
        gamma: float = 2.0,
        class_weight: Sequence[float] | str | None = None,
        loss_name: str = "loss_focal",
        avg_non_ignore: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        self.configure(use_sigmoid, False, options, alpha=f"write class_weight, or {SIGMOID}")
        losses.FocalLoss.__init__(
            self, gamma, label_smoothing, class_weight=read_weights(class_weight), loss_name=loss_name, **options
        )
        self.use_sigmoid, self.avg_non_ignore = use_sigmoid, avg_non_ignore


@REGISTRY.register_module()
class SigmoidFocalLoss(HostLoss, losses.SigmoidFocalLoss):
    """mmseg's FocalLoss, with its defaults."""

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.5,
        loss_name: str = "loss_focal",
        avg_non_ignore: bool = False,
        **options: Any,
    ) -> None:
        self.configure(use_sigmoid, True, options)
        if isinstance(alpha, Sequence):
            raise ValueError(f"alpha is {alpha}; it takes one number, and no list of one for each class")
        losses.SigmoidFocalLoss.__init__(self, gamma, alpha, loss_name=loss_name, **options)
        self.use_sigmoid, self.avg_non_ignore = use_sigmoid, avg_non_ignore

    def terms(self, classes: int) -> int:
        return classes


@REGISTRY.register_module()
class OhemCrossEntropyLoss(HostLoss, losses.OhemCrossEntropyLoss):
    """`metricseg.losses.OhemCrossEntropyLoss`: mmseg's OhemCrossEntropy, in place of its OHEMPixelSampler."""

    def __init__(
        self,
        use_sigmoid: bool = False,
        thresh: float = 0.7,
        min_kept: int = 100_000,
        class_weight: Sequence[float] | str | None = None,
        loss_name: str = "loss_ohem",
        **options: Any,
    ) -> None:
        self.configure(use_sigmoid, False, options, avg_non_ignore="the mean is over the kept pixels")
        losses.OhemCrossEntropyLoss.__init__(
            self, thresh, min_kept, class_weight=read_weights(class_weight), loss_name=loss_name, **options
        )
        self.use_sigmoid = use_sigmoid


@REGISTRY.register_module()
class DiceLoss(HostLoss, losses.DiceLoss):
    """`metricseg.losses.DiceLoss`. It differs from mmseg's: softmax, over the whole batch."""

    def __init__(
        self,
        use_sigmoid: bool = False,
        class_weight: Sequence[float] | str | None = None,
        loss_name: str = "loss_dice",
        **options: Any,
    ) -> None:
        self.configure(use_sigmoid, False, options, avg_non_ignore="ignored pixels never count")
        losses.DiceLoss.__init__(self, class_weight=read_weights(class_weight), loss_name=loss_name, **options)
        self.use_sigmoid = use_sigmoid


class LowResolutionLoss(BaseDecodeHead):  # type: ignore[misc]
    """BaseDecodeHead whose losses take the logits before the upsampling; a base class after the head's own:

        class MyLowResolutionHead(MyHead, LowResolutionLoss): ...

    `low_resolution(MyHead)` is that class. Losses get the head's `align_corners`, `acc_seg` comes from the kernel.

    With `contrast`, the arguments of `metricseg.losses.PixelContrastLoss` but the number of classes and the ignored
    label, training adds this loss. Its embeddings are a 1x1 convolution to `proj_dim` channels, at unit norm, of the
    features that the head classifies; pixels are sampled by the head's own logits. The memory is part of the head.

    Raises TypeError for a loss that is none of metricseg on logits, ValueError for a sampler, or for `num_classes` or
    `ignore_index` in `contrast`. A head that classifies without `cls_seg` raises TypeError at the first loss.
    """

    def __init__(self, *arguments: Any, contrast: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.sampler is not None:
            raise ValueError(
                f"sampler is {type(self.sampler).__name__}, which needs logits of label size; a low-resolution head "
                'takes loss_decode=dict(type="metricseg.OhemCrossEntropyLoss", thresh=..., min_kept=...), with '
                "min_kept for the whole batch"
            )
        for loss in self.losses():
            if not isinstance(loss, PixelLoss):
                kind = type(loss).__name__
                raise TypeError(
                    f"loss_decode has {kind}, which can't take low-resolution logits; write one of "
                    f"{', '.join('metricseg.' + name for name in LOSSES)}, or this head's type without metricseg"
                )
            loss.align_corners = self.align_corners
        counting = [loss for loss in self.losses() if isinstance(loss, SoftmaxLoss)]
        for loss in counting[:1]:
            loss.counts = True
        self.classified: tuple[Tensor, ...] | None = None  # features and logits, empty once `contrast` has used them
        self.contrast: PixelContrastLoss | None = None
        if contrast is not None:
            for key in ("num_classes", "ignore_index"):
                if key in contrast:
                    raise ValueError(f"contrast has no {key}, got {contrast[key]!r}; the head's own is taken")
            self.contrast = PixelContrastLoss(**contrast, num_classes=self.num_classes, ignore_index=self.ignore_index)
            self.contrast_projection = nn.Conv2d(self.channels, self.contrast.proj_dim, 1)

    def losses(self) -> list[nn.Module]:
        """The losses of `loss_decode`, which is one or a list."""
        return list(self.loss_decode) if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Logits of features; both are kept for `contrast`."""
        logits = super().cls_seg(feat)
        if self.contrast is not None and self.training:
            self.classified = feat, logits.detach()
        return cast(Tensor, logits)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
        """The losses by name and `acc_seg`, of logits [B, K, h, w] and the samples' labels [B, H, W]."""
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        values: dict[str, Tensor] = {}
        counted = None
        for loss in self.losses():
            value = loss(seg_logits, labels, ignore_index=self.ignore_index)
            add(values, loss.loss_name, value)
            if getattr(loss, "counted", None) is not None:
                counted, loss.counted = loss.counted, None
        correct, valid = counted or self.count(seg_logits.detach(), labels)
        eps = torch.finfo(torch.float32).eps  # mmseg's, which makes 100 of a batch without valid pixels
        values["acc_seg"] = ((correct + eps) * (100.0 / (valid + eps))).float()[None]
        if self.contrast is not None and self.training:
            self.add_contrast(values, self.contrast, labels)
        return values

    def add_contrast(self, values: dict[str, Tensor], contrast: PixelContrastLoss, labels: Tensor) -> None:
        """Add the contrast loss; of a head with several outputs, to the losses of the first."""
        classified, self.classified = self.classified, ()
        if classified is None:
            raise TypeError(f"{type(self).__name__} takes no contrast: it does not classify features by cls_seg")
        if not classified:
            return
        feat, logits = classified
        if logits.shape[1] == 1:  # binary: of the classes 0 and z
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        add(values, contrast.loss_name, contrast(self.contrast_projection(feat), labels, logits))

    def count(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(correct pixels, valid pixels), where no loss counts them."""
        ignore_index = "auto" if self.ignore_index is None else self.ignore_index
        if logits.shape[1] == 1:  # the only class is the most probable one
            valid = ~is_label(labels, resolve_ignore_index(ignore_index, 2))
            return ((labels == 0) & valid).sum(), valid.sum()
        _, stats = kernels.cross_entropy(
            logits, labels, ignore_index=ignore_index, align_corners=self.align_corners, return_stats=True
        )
        return stats.correct, stats.valid


def add(values: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Put a loss under its name; losses of one name are added."""
    values[name] = values[name] + value if name in values else value


def low_resolution(head: type) -> type:
    """The subclass of a decode head class whose losses take its logits before the upsampling; also a decorator.

    Raises TypeError for a class that is no decode head, or that does not leave the loss to BaseDecodeHead.
    """
    if not isinstance(head, type) or not issubclass(head, BaseDecodeHead):
        raise TypeError(f"head is {head!r}; it takes a subclass of mmseg's BaseDecodeHead")
    for base in head.__mro__[: head.__mro__.index(BaseDecodeHead)]:
        own = vars(base).get("loss_by_feat")
        if own is not None and "super" not in own.__code__.co_names:
            raise TypeError(
                f"{head.__name__} computes its loss itself, from logits of label size; write "
                f'type="{head.__name__}", with losses of metricseg where its own are cross-entropies'
            )
    place = {name: getattr(head, name) for name in ("__module__", "__qualname__")}  # of a decorated class, for pickle
    return type(head.__name__, (head, LowResolutionLoss), {**place, "__doc__": LowResolutionLoss.__doc__})


def register(head: type) -> None:
    """Register the low-resolution twin of a head, or the reason why it has none."""
    try:
        twin = low_resolution(head)
    except TypeError as error:
        reason = str(error)

        def refuse(**config: Any) -> None:
            raise TypeError(reason)

        REGISTRY.register_module(name=head.__name__, module=refuse)
        return
    globals()[head.__name__], twin.__module__ = twin, __name__  # for pickle
    REGISTRY.register_module(module=twin)


LOSSES = tuple(REGISTRY.module_dict)
for found in list(MODELS.module_dict.values()):
    if isinstance(found, type) and issubclass(found, BaseDecodeHead):
        register(found)
