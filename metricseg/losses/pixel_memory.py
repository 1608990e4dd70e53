"""A bank of rows from earlier images, to contrast pixels with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metricseg_kernels as kernels
from metricseg.utils import distributed
from metricseg_kernels.core.labels import IgnoreIndex, is_label, resolve_ignore_index


class PixelMemory(nn.Module):
    """A ring of segment means and a ring of pixels per class, of unit norm and fixed capacity, without gradient.

    Each image adds, for each class in it, the mean direction of the pixels of the class and at most `pixels` of them,
    chosen uniformly. They replace the oldest rows. All shapes are fixed, so on CUDA there is no synchronization.

    An update is held back until the next call of `update` or `flush`: the loss just computed needs its bank until its
    backward is done, and no image is compared with its own rows. So of two losses with one bank, the first one's
    backward comes before the second one's forward. The state dict has no rows held back; saving it flushes.

    Args:
        num_classes: K; every class is a class like any other.
        dim: D.
        size: rows of a ring.
        pixels: most pixels of one class that one image gives.

    Raises ValueError for an argument below 1.

    Source: Wang et al., Exploring Cross-Image Pixel Contrast for Semantic Segmentation, ICCV 2021. The published code
    takes other pixels than it means to, overwrites the newest rows, leaves out class 0 and contrasts with rows that it
    never filled (issues 18, 31, 55, 65); this one follows the paper.
    """

    bank: Tensor  # [2 K size + 1, D]: rings of means, rings of pixels, and a row that is never read
    written: Tensor  # [2 K] int64, rows that a ring was ever given
    held: Tensor | None  # [R, D]; keeps its address, for captured CUDA graphs
    held_rings: Tensor  # [R] int64, -1 for none

    def __init__(self, num_classes: int, dim: int, size: int = 5000, pixels: int = 10) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("dim", dim), ("size", size), ("pixels", pixels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        self.num_classes, self.size, self.pixels = num_classes, size, pixels
        self.register_buffer("bank", torch.zeros(2 * num_classes * size + 1, dim))
        self.register_buffer("written", torch.zeros(2 * num_classes, dtype=torch.int64))
        self.register_buffer("held", None, persistent=False)
        self.register_buffer("held_rings", None, persistent=False)
        self.holds = False

    def rows(self) -> tuple[Tensor, Tensor]:
        """(rows [2 K size, D], a view of the bank; labels [2 K size] int64, -1 if nothing was written yet)."""
        filled = torch.arange(self.size, device=self.bank.device) < self.written[:, None]  # [2 K, size]
        classes = torch.arange(self.num_classes, device=self.bank.device).repeat(2)[:, None]
        return self.bank[:-1], torch.where(filled, classes, -1).reshape(-1)

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        ignore_index: IgnoreIndex = "auto",
        seed: int | None = None,
        gather: bool = False,
    ) -> None:
        """Take rows of `features` [B, D, h, w] with `labels` [B, h, w], into the bank at the next call.

        Args:
            seed: of the choice of pixels; None draws one from torch's generator.
            gather: take the rows of all ranks, so that all have the same bank.

        Raises ValueError if the features have another number of channels than the bank.
        """
        if features.shape[1] != self.bank.shape[1]:
            raise ValueError(f"features have {features.shape[1]} channels, the bank's rows dim = {self.bank.shape[1]}")
        self.flush()
        rows, rings = self._candidates(features, labels, ignore_index, seed)
        if gather:
            rows, rings = distributed.gather_rows(rows), distributed.gather_rows(rings)
        if self.held is not None and self.held.shape == rows.shape:
            self.held.copy_(rows)
            self.held_rings.copy_(rings)
        else:
            self.held, self.held_rings = rows, rings
        self.holds = True

    @torch.no_grad()
    def flush(self) -> None:
        """Put the rows held back into the bank."""
        if self.held is None or not self.holds:
            return
        self.holds = False
        rings, order = self.held_rings.sort(stable=True)  # within a ring the rows keep their order
        counts = torch.zeros_like(self.written).index_add_(0, rings.clamp(min=0), (rings >= 0).long())
        rank = torch.arange(rings.numel(), device=rings.device) - torch.searchsorted(rings, rings)
        # of more rows than a ring has, the last ones stay
        stays = (rings >= 0) & (rank >= counts[rings] - self.size)
        place = rings * self.size + (self.written[rings] + rank) % self.size
        place = torch.where(stays, place, self.bank.shape[0] - 1)
        self.bank.index_copy_(0, place, torch.where(stays[:, None], self.held[order], 0))
        self.written += counts

    def _candidates(
        self, features: Tensor, labels: Tensor, ignore_index: IgnoreIndex, seed: int | None
    ) -> tuple[Tensor, Tensor]:
        """(rows [B K + B K pixels, D], their rings, -1 if there is none)."""
        images, classes = len(features), torch.arange(self.num_classes, device=labels.device)
        ignored = resolve_ignore_index(ignore_index, self.num_classes)
        wide = torch.promote_types(self.bank.dtype, torch.float32)
        sums = []
        for image, label in zip(features.flatten(2), labels.flatten(1), strict=True):  # [D, n], [n]
            norm = torch.linalg.vector_norm(image, dim=0, dtype=wide)
            mask = (label == classes[:, None]) & ~is_label(label, ignored) & (norm > 0)  # [K, n]
            sums.append((mask / norm.clamp(min=1e-12)) @ image.to(wide).T)
        chosen = kernels.sample_anchors(
            labels, max_samples=images * self.num_classes * self.pixels, max_views=self.pixels, min_pixels=0,
            strategy="random", num_classes=self.num_classes, ignore_index=ignored, seed=seed,
        )  # fmt: skip
        pixels = kernels.gather_pixels(features, chosen.index, normalize=False)
        rows = F.normalize(torch.cat([*sums, pixels.to(wide)]), dim=1).to(self.bank.dtype)
        of_pixels = torch.where(chosen.labels < 0, -1, chosen.labels + self.num_classes)
        return rows, torch.where(rows.any(1), torch.cat([classes.repeat(images), of_pixels]), -1)

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.flush()
        super()._save_to_state_dict(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.holds = False
        super()._load_from_state_dict(*arguments, **options)

    def extra_repr(self) -> str:
        """Arguments that print shows."""
        return f"num_classes={self.num_classes}, dim={self.bank.shape[1]}, size={self.size}, pixels={self.pixels}"
