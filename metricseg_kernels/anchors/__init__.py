"""Choice of the pixels that take part in a pixel-to-pixel loss, and their rows out of a feature map.

The choice is a pure function of labels and a seed. It is the same on every backend, in tensors of fixed size, without
synchronization.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import MOST_CLASSES, IgnoreIndex, resolve_ignore_index
from ..core.library import ops
from . import op, reference

STRATEGIES = ("hard", "random", "semi_hard", "boundary")


class Anchors(NamedTuple):
    """Chosen pixels, by image, then class, then group, at the front of S = max_samples rows.

    index: [S] int64, (image h + y) w + x, -1 if unused. labels: [S] int64, ignore_label if unused.
    count: 0-d int64, rows in use.
    """

    index: Tensor  # type: ignore[assignment]  # tuple has methods of these names
    labels: Tensor
    count: Tensor  # type: ignore[assignment]


def sample_anchors(
    labels: Tensor,
    predictions: Tensor | None = None,
    *,
    max_samples: int = 1024,
    max_views: int = 100,
    min_pixels: int | None = None,
    strategy: str = "hard",
    confidence: Tensor | None = None,
    threshold: float = 0.7,
    radius: int = 2,
    num_classes: int | None = None,
    ignore_index: IgnoreIndex = "auto",
    ignore_label: int = -1,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Anchors:
    r"""Choose at most max_samples pixels, spread evenly over the classes of each image, without a host sync.

    A slot is an (image, class) pair with more than min_pixels pixels. From each are taken

        n_view = min(max_samples // slots, max_views), at least 1,

    of its pixels, or all that it has if these are fewer; with more slots than max_samples, as many slots, chosen
    uniformly, give one each. A strategy parts the pixels of a slot into two groups; the choice within a group is
    uniform, without replacement:

        "hard"       ContrastiveSeg's: half (rounded down) of those that predictions get wrong, the rest of those they
                     get right, and more of either if the other has too few.
        "random"     one group.
        "semi_hard"  first those that predictions get wrong (if given) or whose confidence is below threshold (or NaN),
                     then the others.
        "boundary"   first those with another class within `radius` cells (a square window; ignored pixels are no
                     class), then the others.

    Args:
        labels: [B, h, w] classes at feature resolution; uint8, int32 or int64, read as they are.
        predictions: [B, h, w] predicted classes, uint8, int32 or int64. "hard" needs them, "semi_hard" takes them.
        max_samples: S, rows of the result.
        max_views: most pixels of one slot.
        min_pixels: a slot has more pixels than this; None for max_views.
        strategy: see above.
        confidence: [B, h, w] floating; "semi_hard" needs it.
        threshold: a confidence below it is low.
        radius: of the window of "boundary", in cells, >= 1.
        num_classes: labels lie in [0, num_classes); None for 256 (uint8 labels) or 1024. At most 65536.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255, unless num_classes is more.
        ignore_label: label of unused rows.
        seed: an int, or a 0-d int64 tensor on the labels' device; None draws one from torch's generator of that device.
            Equal seeds give equal choices, on every backend. In a captured CUDA graph an int is a constant: each replay
            then makes the same choice; None or a tensor that is refilled does not.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        Anchors(index [S], labels [S], count []). No slot: count 0, every row unused.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value. A label
            that is neither ignore_index nor in [0, num_classes) raises on the CPU; on CUDA it counts as ignored, and
            with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here.

    Source: Wang et al., Exploring Cross-Image Pixel Contrast for Semantic Segmentation, ICCV 2021 ("hard").
    """
    _check_labels(labels, predictions, confidence, strategy)
    for name, value, low in (("max_samples", max_samples, 1), ("max_views", max_views, 1), ("radius", radius, 1)):
        checks.integer(name, value, low, 2**31 - 1)
    min_pixels = max_views if min_pixels is None else min_pixels
    checks.integer("min_pixels", min_pixels, 0, 2**63 - 1)
    ignored = resolve_ignore_index(ignore_index, num_classes)
    num_classes = (256 if labels.dtype == torch.uint8 else 1024) if num_classes is None else num_classes
    checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    checks.number("threshold", threshold, -torch.inf)
    name = choose("anchors", labels.device, labels.dtype, backend)
    inputs = reference.SampleInputs(
        labels,
        *reference.preferred(strategy, labels, predictions, confidence, threshold, radius, ignored),
        _seed_tensor(seed, labels.device),
        max_samples,
        max_views,
        min_pixels,
        half=strategy == "hard",
        num_classes=num_classes,
        ignore_index=ignored,
        ignore_label=ignore_label,
    )
    if name != "reference":
        return Anchors(*ops.sample_pixels(*inputs, name))
    index, sampled, count, bad = reference.sample(inputs)
    if not torch.compiler.is_compiling():
        op.check_labels(bad, num_classes, ignored)
    return Anchors(index, sampled, count)


def gather_pixels(
    features: Tensor, index: Tensor, *, normalize: bool = True, eps: float = 1e-12, backend: str | None = None
) -> Tensor:
    r"""The rows of chosen pixels, straight out of a feature map, normalized on the way.

        y_s = x / max(||x||, eps),    x = features[image, :, y, x] at (image h + y) w + x = index[s]

    Args:
        features: [B, C, h, w]; float64, float32, bfloat16 or float16; NCHW, channels-last or strided, read in place.
            Norms are in float32 (float64 for float64).
        index: [S] int64 pixels, such as `Anchors.index`; -1 for a row of zeros. A pixel may come up more than once.
        normalize: False gives x.
        eps: least norm to divide by, > 0.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [S, C] in the dtype of features. A pixel of norm 0 gives zeros, and a zero gradient; one with a NaN gives NaN,
        and a NaN gradient of its own. The gradient has the memory format of features; the gradients of a pixel that
        comes up several times are added in a fixed order.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value. An index
            out of range raises on the CPU; on CUDA its row is NaN, and with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".
    """
    checks.tensor("features", features, 4, checks.FLOATS, "[B, C, h, w]")
    checks.tensor("index", index, 1, (torch.int64,), "[S]")
    checks.same_device("index", index, "features", features)
    checks.number("eps", eps, 0.0)
    if eps == 0:
        raise ValueError("eps must be > 0, got 0")
    checks.boolean("normalize", normalize)
    name = choose("anchors", features.device, features.dtype, backend)
    if name != "reference":
        return ops.gather_pixels(features, index, normalize, eps, name)[0]
    if not torch.compiler.is_compiling():
        op.check_index(index, features.shape[0] * features.shape[2] * features.shape[3])
    return reference.gather(features, index, normalize, eps)


def _check_labels(labels: Tensor, predictions: Tensor | None, confidence: Tensor | None, strategy: str) -> None:
    checks.choice("strategy", strategy, STRATEGIES)
    checks.tensor("labels", labels, 3, checks.LABELS, "[B, h, w]")
    for name, value, dtypes in (("predictions", predictions, checks.LABELS), ("confidence", confidence, checks.FLOATS)):
        if value is None:
            continue
        checks.tensor(name, value, 3, dtypes, "[B, h, w]")
        checks.same_device(name, value, "labels", labels)
        if value.shape != labels.shape:
            raise ValueError(f"{name} {tuple(value.shape)} and labels {tuple(labels.shape)} differ in shape")
    if strategy == "hard" and predictions is None:
        raise ValueError("strategy='hard' needs predictions, got None")
    if strategy == "semi_hard" and confidence is None:
        raise ValueError("strategy='semi_hard' needs confidence, got None")


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed on the device of the kernels; no value passes through the host."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        checks.tensor("seed", seed, 0, (torch.int64,), "[]")
        if seed.device != device:
            raise ValueError(f"seed is on {seed.device}, labels on {device}; both must be on one device")
        return seed
    checks.integer("seed", seed, -(2**63), 2**63 - 1)
    return torch.full((), seed, dtype=torch.int64, device=device)
