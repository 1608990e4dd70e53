"""Class center similarity: a classifier whose weights are the means of the classes in the picture itself."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import overload

import torch
from torch import Tensor, nn

import metricseg_kernels as kernels
from metricseg.losses.region import DiceLoss
from metricseg.utils.labels import check_labels, check_maps, nearest
from metricseg_kernels.core.labels import IgnoreIndex, is_class, resolve_ignore_index

CENTERS, ADAPTERS = ("adaptive", "static"), ("grouped", "mlp")


class CCSLayer(nn.Module):
    r"""Logits from the similarity of each pixel to each class center, and the losses that shape the centers.

        z_ik = scale cos(x_i, w_k)

    with centers w_k of one of two kinds. "static": learned, [K, C], for all images. "adaptive": each image's own,
    [B, K, C], made of its features by guidance logits g,

        g = conv1x1(x),  M = softmax_k(g),  f_k = sum_i M_ik x_i / sum_i M_ik,
        w_k = A_k f_k + a_k             adapter="grouped": K C^2 weights; starts as A_k = 1 and a small random a_k
        w_k = MLP([f_k; s_k])           adapter="mlp": one for all classes, with learned centers s_k; 3 C^2 weights

    Losses, each times its weight; t_i is the label of pixel i, k runs over the classes that an image has labels of:

        "guidance"  cross-entropy of g, interpolated to the labels' resolution inside the kernel
        "dice"      soft Dice of softmax(g), interpolated likewise, see `metricseg.losses.DiceLoss`
        "push"      mean_b mean_k 1 / (K - 1) sum_{j != k} max(0, cos(w_k, w_j) - margin)
        "pull"      mean_b mean_k mean_{t_i = k} (1 - cos(x_i, sg[w_k]))

    That of the logits is left to the caller: `metricseg_kernels.cross_entropy(logits, target)` or another. Push and
    pull take the labels that F.interpolate(mode="nearest") takes. Static centers have no guidance and no dice.

    The paper's text is not public beyond its abstract. From it: class centers of the image by soft membership, their
    adaptation, cosine similarity as logits, and losses between and within classes. Reconstructed: the grouped
    convolution, its start, and the MLP; Dice and its weight 0.2; form and weights of push (1.0) and pull (0.3); the
    scale. The weight 0.4 of the guidance follows Zhao et al. 2017 (PSPNet).

    Args:
        channels: C. num_classes: K.
        centers: "adaptive" or "static". adapter: "grouped" or "mlp".
        scale: > 0, of the cosines.
        guidance, dice, push, pull: weights, >= 0; a loss of weight 0 is not computed.
        margin: cosine up to which two centers have no push.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        backend: of the kernels: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Raises ValueError for an argument out of range, named with its value.

    Source: Wu et al. 2023 (class center similarity).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        centers: str = "adaptive",
        adapter: str = "grouped",
        scale: float = 15.0,
        guidance: float = 0.4,
        dice: float = 0.2,
        push: float = 1.0,
        pull: float = 0.3,
        margin: float = 0.0,
        ignore_index: IgnoreIndex = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        weights = {"guidance": guidance, "dice": dice, "push": push, "pull": pull}
        for name, count in (("channels", channels), ("num_classes", num_classes)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is {count!r}; it takes an integer >= 1")
        for name, value, choices in (("centers", centers, CENTERS), ("adapter", adapter, ADAPTERS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it takes {' or '.join(map(repr, choices))}")
        for name, factor in weights.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"{name} is {factor}; it takes a finite weight >= 0")
        if not 0 < scale < math.inf or not math.isfinite(margin):
            raise ValueError(f"scale, margin are {scale}, {margin}; they take a finite number > 0, a finite number")
        self.channels, self.num_classes, self.scale, self.margin = channels, num_classes, scale, margin
        self.ignore_index, self.backend = resolve_ignore_index(ignore_index, num_classes), backend
        adaptive = centers == "adaptive"
        self.offers = ("logits", *(("guidance",) if adaptive else ()), "centers", "push", "pull")
        own = ("guidance", "dice") if adaptive else ()
        self.weights = {name: factor for name, factor in weights.items() if factor and name in (*own, "push", "pull")}

        self.guidance = nn.Conv2d(channels, num_classes, 1) if adaptive else None
        self.adapter: nn.Module | None = None
        self.centers: nn.Parameter | None = None
        if adaptive and adapter == "grouped":
            self.adapter = nn.Conv1d(num_classes * channels, num_classes * channels, 1, groups=num_classes)
            nn.init.dirac_(self.adapter.weight, groups=num_classes)
        else:  # random directions: in front of the MLP of entries as large as features behind a batch norm
            self.centers = nn.Parameter(torch.randn(num_classes, channels) / (1 if adaptive else channels**0.5))
        if adaptive and adapter == "mlp":
            self.adapter = nn.Sequential(nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        of_dice = "reference" if backend == "reference" else None  # its family may lack another
        self.dice = DiceLoss(ignore_index=self.ignore_index, backend=of_dice)

    @overload
    def forward(self, features: Tensor, target: None = ...) -> Tensor: ...

    @overload
    def forward(self, features: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Features [B, C, h, w] to logits [B, K, h, w]; with labels [B, H, W] of any size to (logits, losses), the
        losses by name, 0-d, times their weights.

        Raises TypeError or ValueError for an argument of wrong type, dtype, shape or device, or a label out of range.
        """
        if target is None:
            return self.compute(features, ("logits",))["logits"]
        wanted = {"guidance" if name == "dice" else name for name in self.weights}
        found = self.compute(features, {"logits", *wanted}, target)
        losses = {}
        for name, weight in self.weights.items():
            if name == "guidance":
                loss = kernels.cross_entropy(
                    found["guidance"], target, ignore_index=self.ignore_index, backend=self.backend
                )
            else:
                loss = self.dice(found["guidance"], target) if name == "dice" else found[name]
            losses[name] = weight * loss
        return found["logits"], losses

    def compute(self, features: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The outputs asked for by name, and no others: "logits" [B, K, h, w]; "guidance", the map g [B, K, h, w];
        "centers" [B, K, C], static ones [K, C]; "push" and "pull", 0-d and without their weights, which need labels
        [B, H, W]. Raises as the call does, and ValueError for another name."""
        if unknown := sorted(set(names) - set(self.offers)):
            raise ValueError(f"{', '.join(unknown)} asked for; this layer offers {', '.join(self.offers)}")
        if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[1] != self.channels:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features must be a Tensor [B, {self.channels}, h, w], got {got}")
        if labels is not None:
            check_maps("features", features, "[B, C, h, w]", "labels", labels)
            check_labels(labels, self.num_classes, self.ignore_index)
            labels = nearest(labels, features.shape[-2:])
        elif {"push", "pull"} & set(names):
            raise ValueError("push and pull are made with labels, got None")
        found: dict[str, Tensor] = {}
        if self.guidance is not None:
            found["guidance"] = self.guidance(features)
        if set(names) - {"guidance"}:
            found["centers"] = centers = self.centers_of(features, found.get("guidance"))
        if "pull" in names:
            found["logits"], found["pull"] = kernels.center_similarity(
                features, centers, scale=self.scale, pull_labels=labels, ignore_index=self.ignore_index,
                backend=self.backend,
            )  # fmt: skip
        elif "logits" in names:
            found["logits"] = kernels.center_similarity(features, centers, scale=self.scale, backend=self.backend)
        if "push" in names:
            each = centers.expand(len(features), -1, -1)
            found["push"] = kernels.center_push(each, self.present(labels), self.margin)
        return {name: found[name] for name in names}

    def centers_of(self, features: Tensor, guidance: Tensor | None) -> Tensor:
        """Centers [B, K, C], or [K, C] if they are static."""
        if guidance is None:
            return self.centers
        means = kernels.class_centers(features, guidance, backend=self.backend)  # [B, K, C]
        if self.centers is None:
            return self.adapter(means.flatten(1)[..., None]).view_as(means)
        return self.adapter(torch.cat([means, self.centers.expand_as(means).to(means.dtype)], 2))

    def present(self, labels: Tensor) -> Tensor:
        """[B, K] bool: the classes that labels [B, h, w] hold."""
        valid = is_class(labels, self.num_classes, self.ignore_index)
        at = torch.where(valid, labels.long(), self.num_classes).flatten(1)
        seen = torch.zeros(len(labels), self.num_classes + 1, dtype=torch.bool, device=labels.device)
        return seen.scatter(1, at, True)[:, :-1]

    def extra_repr(self) -> str:
        """Arguments that print shows."""
        return f"channels={self.channels}, num_classes={self.num_classes}, scale={self.scale}, losses={self.weights}"
