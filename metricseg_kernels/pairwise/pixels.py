"""The stream of products on the CPU where one side is the pixels of feature maps: a panel of them at a time.

The other side is a few rows, W [K, C]. A panel X [C, P] is read where it lies (float32 and float64, NCHW and
channels-last), and it is so narrow that it, and the panel of the gradient, are still in cache when the next product or
an epilogue wants them. All panels of all images are visited once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import accumulator

CACHE_BYTES = 1024 << 10  # of a panel and thread
LEAST = 64  # pixels of a panel and thread


class Panel(NamedTuple):
    """Some pixels of one image."""

    image: int
    pixels: slice

    def of(self, maps: Tensor) -> Tensor:
        """The panel of maps [B, C, N], or of [B, N], in the accumulator dtype: a view where it has that already."""
        values = self.view(maps)
        return values.to(accumulator(values.dtype))

    def view(self, maps: Tensor) -> Tensor:
        """The panel of maps [B, ..., N], as it lies."""
        return maps[self.image, ..., self.pixels]

    def place(self, maps: Tensor) -> Tensor:
        """Where to form the panel of maps that are to be filled: in its place, if it is of the accumulator dtype."""
        values, acc = self.view(maps), accumulator(maps.dtype)
        return values if values.dtype == acc else torch.empty_like(values, dtype=acc)

    def fill(self, maps: Tensor, values: Tensor) -> None:
        """Puts what was formed at `place` where it belongs."""
        if maps.dtype != values.dtype:
            self.view(maps).copy_(values)


def panels(maps: Tensor, rows: int) -> Iterator[Panel]:
    """The panels of maps [B, C, N] that meet so many rows."""
    batch, channels, pixels = maps.shape
    threads, bytes_of_pixel = torch.get_num_threads(), max(channels, rows, 1) * accumulator(maps.dtype).itemsize
    width = threads * max(LEAST, CACHE_BYTES // bytes_of_pixel // LEAST * LEAST)
    for image in range(batch):
        for begin in range(0, pixels, width):
            yield Panel(image, slice(begin, min(begin + width, pixels)))
