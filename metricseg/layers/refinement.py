"""Upsampling that looks where it should: each pixel of a fine map reads a coarse one at a learned offset."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metricseg_kernels as kernels

UPSAMPLINGS = ("semantic", "flow", "bilinear")


def upsample(coarse: Tensor, fine: Tensor, align_corners: bool) -> Tensor:
    """The coarse map at the size of the fine one, without offsets."""
    return F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=align_corners)


class FlowAlign(nn.Module):
    """A coarse map at the size of a fine one, sampled at offsets that both of them predict.

        o, l = conv3x3([conv1x1(fine); upsample(conv1x1(coarse))])
        y = refine_upsample(coarse, o, l)                without l if `neighbors` is False

    The last convolution starts at zero, so the layer starts as F.interpolate(mode="bilinear").

    Args:
        coarse_channels, fine_channels: of the two maps.
        hidden: channels that offsets are predicted from, of each map.
        neighbors: whether a pixel takes the offsets of its neighbors too, weighted by a softmax of l (Wang et al.
            2024); else each its own (Li et al. 2020).
        align_corners: of all upsampling; as the network around it has it.
        backend: of the kernel: "reference", "cpu", "triton", or None for the first that can run.

    Raises ValueError for channels below 1, named with their value.

    Source: Li et al., Semantic Flow for Fast and Accurate Scene Parsing, ECCV 2020 (flow alignment module).
    """

    def __init__(
        self,
        coarse_channels: int,
        fine_channels: int,
        *,
        hidden: int = 64,
        neighbors: bool = False,
        align_corners: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("coarse_channels", coarse_channels), ("fine_channels", fine_channels), ("hidden", hidden)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it takes an integer >= 1")
        self.align_corners, self.backend = align_corners, backend
        self.coarse = nn.Conv2d(coarse_channels, hidden, 1, bias=False)
        self.fine = nn.Conv2d(fine_channels, hidden, 1, bias=False)
        self.predictor = nn.Conv2d(2 * hidden, 11 if neighbors else 2, 3, padding=1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)

    def offsets(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor | None]:
        """(offsets [B, 2, H, W], (dy, dx) in pixels of the fine map, neighbor logits [B, 9, H, W] or None)."""
        upsampled = upsample(self.coarse(coarse), fine, self.align_corners)
        predicted = self.predictor(torch.cat([self.fine(fine), upsampled], 1))
        offsets, logits = predicted[:, :2], predicted[:, 2:]
        return offsets, logits if logits.shape[1] else None

    def displacement(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, 2, H, W], where each pixel reads: (dy, dx) from itself, in pixels of the fine map.

        o~(p) = sum_q a_q(p) o(q) over the neighborhood of p, as in `metricseg_kernels.refine_upsample`.
        """
        offsets, logits = self.offsets(coarse, fine)
        if logits is None:
            return offsets
        around = F.unfold(F.pad(offsets, (1, 1, 1, 1), mode="replicate"), 3)  # [B, 2 * 9, H * W]
        around = around.view(len(offsets), 2, 9, *offsets.shape[2:])
        return (around * logits.softmax(1)[:, None]).sum(2)

    def forward(self, coarse: Tensor, fine: Tensor, refine: bool = True) -> Tensor:
        """coarse [B, C, h, w], fine [B, F, H, W] with H >= h, W >= w -> [B, C, H, W].

        Without `refine` F.interpolate, to compare with.
        """
        if not refine:
            return upsample(coarse, fine, self.align_corners)
        offsets, logits = self.offsets(coarse, fine)
        dtype = coarse.dtype if offsets.dtype == torch.float32 else offsets.dtype  # autocast convolves in half
        return kernels.refine_upsample(
            coarse.to(dtype), offsets, logits, align_corners=self.align_corners, backend=self.backend
        )


class SemanticRefinement(nn.Module):
    """Two feature maps fused at the size of the finer one, the coarser refined on its way there.

        y = ReLU(BN(conv3x3(conv1x1(fine) + upsample(conv1x1(coarse)))))

    upsampled by `FlowAlign` with neighbor weights. Usable between any two stages of a decoder, where upsampling and
    adding stood.

    Written from the abstract of the paper. From it: offsets weighted over a neighborhood. Reconstructed: the
    convolutions that predict them, their start at zero, and the fusion by a sum.

    Args:
        coarse_channels, fine_channels: of the two maps. channels: of the result.
        upsampling: "semantic"; or, to compare with it, "flow", which has no neighbor weights, or "bilinear".
        hidden, align_corners, backend: see `FlowAlign`.

    Raises ValueError for channels below 1, or another `upsampling`, named with their value.

    Source: Wang et al. 2024, arXiv:2412.08671 (semantic refinement module).
    """

    def __init__(
        self,
        coarse_channels: int,
        fine_channels: int,
        channels: int,
        *,
        upsampling: str = "semantic",
        hidden: int = 64,
        align_corners: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling is {upsampling!r}; it takes one of {UPSAMPLINGS}")
        if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
            raise ValueError(f"channels is {channels!r}; it takes an integer >= 1")
        options = {"hidden": hidden, "align_corners": align_corners, "backend": backend}
        self.align_corners, self.align = align_corners, None
        if upsampling != "bilinear":
            self.align = FlowAlign(channels, fine_channels, neighbors=upsampling == "semantic", **options)
        self.coarse = nn.Conv2d(coarse_channels, channels, 1, bias=False)
        self.fine = nn.Conv2d(fine_channels, channels, 1, bias=False)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def displacement(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """[B, 2, H, W], see `FlowAlign.displacement`; zeros for bilinear upsampling."""
        if self.align is None:
            return fine.new_zeros((len(fine), 2, *fine.shape[2:]))
        return self.align.displacement(self.coarse(coarse), fine)

    def forward(self, coarse: Tensor, fine: Tensor, refine: bool = True) -> Tensor:
        """coarse [B, C, h, w], fine [B, F, H, W] with H >= h, W >= w -> [B, channels, H, W].

        Without `refine` F.interpolate takes the place of `FlowAlign`, to compare with.
        """
        x = self.coarse(coarse)
        x = upsample(x, fine, self.align_corners) if self.align is None else self.align(x, fine, refine)
        return self.fuse(self.fine(fine) + x)
