"""Upsampling with learned offsets, as semantic refinement and flow alignment use it.

Neither the upsampled map, nor a sampling grid, nor unfolded offsets exist in memory, forward or backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.library import ops
from . import op, reference  # noqa: F401 (op defines the ops)

PADDINGS = ("border", "zeros")


def refine_upsample(
    features: Tensor,
    offsets: Tensor,
    neighbor_logits: Tensor | None = None,
    *,
    align_corners: bool = False,
    padding: str = "border",
    backend: str | None = None,
) -> Tensor:
    r"""Bilinear upsampling, sampled again at offsets that each pixel takes from its neighbors.

    With U the bilinear upsampling of `features` to H x W, as F.interpolate has it, o(q) the offset of pixel q, N(p) the
    3 x 3 neighborhood of p (beyond the border, the border's pixels) and a = softmax of `neighbor_logits` over it:

        o~(p) = sum_{q in N(p)} a_q(p) o(q),        output(p) = U(p + o~(p)), bilinear between pixels

    Without `neighbor_logits` o~ = o, the flow-guided upsampling of SFNet and AlignSeg. Offsets of any length are right.
    Zero offsets give F.interpolate. Otherwise results and gradients are those of F.grid_sample on U. A position that is
    NaN gives NaN at its pixel and passes no gradient; an infinite one is outside. Gradients are deterministic.

    Args:
        features: [B, C, h, w] float64, float32, bfloat16 or float16; any strides.
        offsets: [B, 2, H, W], (dy, dx) in pixels of the H x W grid, H >= h, W >= w. In the dtype of features, or
            float32 for half-precision features. Positions are float32 (float64 for float64).
        neighbor_logits: [B, 9, H, W] in the dtype of offsets, of the neighborhood row by row; None for o~ = o.
        align_corners: as in F.interpolate, of U.
        padding: of samples outside U: "border" takes the nearest pixel, "zeros" takes 0.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [B, C, H, W] in the dtype of features, channels-last if features are. No channels or pixels: empty.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Wang et al. 2024, semantic refinement module; Li et al., Semantic Flow for Fast and Accurate Scene Parsing,
    ECCV 2020, without `neighbor_logits`.
    """
    checks.tensor("features", features, 4, checks.FLOATS, "[B, C, h, w]")
    _check_map("offsets", offsets, 2, features)
    if neighbor_logits is not None:
        _check_map("neighbor_logits", neighbor_logits, 9, features)
        if neighbor_logits.dtype != offsets.dtype or neighbor_logits.shape[2:] != offsets.shape[2:]:
            raise ValueError(
                f"neighbor_logits must be of the dtype and size of offsets, {offsets.dtype} {_size(offsets)}, got "
                f"{neighbor_logits.dtype} {_size(neighbor_logits)}"
            )
    checks.boolean("align_corners", align_corners)
    checks.choice("padding", padding, PADDINGS)
    for axis, name in ((2, "rows"), (3, "columns")):
        cells, labels = features.shape[axis], offsets.shape[axis]
        if labels < cells or (labels > 0 and cells == 0):
            raise ValueError(f"offsets must have at least the {name} of features, {max(cells, 1)}, got {labels}")
    arguments = (features, offsets, neighbor_logits, align_corners, padding == "zeros")
    name = choose("refine", features.device, features.dtype, backend)
    if name != "reference":
        return ops.refine_upsample_fwd(*arguments, name)
    if features.numel() == 0 or offsets.numel() == 0:
        nothing = sum(t.flatten()[:0].sum() for t in arguments[:3] if isinstance(t, Tensor))
        return features.new_zeros((*features.shape[:2], *offsets.shape[2:])) + nothing
    return reference.upsample(*arguments).to(features.dtype)


def _size(x: Tensor) -> list[int]:
    return list(x.shape[2:])


def _check_map(name: str, value: Tensor, channels: int, features: Tensor) -> None:
    layout = f"[B, {channels}, H, W]"
    checks.tensor(name, value, 4, checks.FLOATS, layout)
    checks.same_device(name, value, "features", features)
    if value.shape[:2] != (features.shape[0], channels):
        raise ValueError(f"{name} must be {layout} with B = {features.shape[0]}, got shape {tuple(value.shape)}")
    allowed = {features.dtype} | ({torch.float32} if features.dtype != torch.float64 else set())
    if value.dtype not in allowed:
        raise TypeError(
            f"{name} must have the dtype of features, {features.dtype}, or float32 beside half precision, got "
            f"{value.dtype}"
        )
