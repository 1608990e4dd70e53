"""Results that are larger than the caches are written past them: the same values as in parts that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import metricseg_kernels as mk

BATCH, CLASSES = 4, 19
CACHED = 8 << 20  # bytes, kCached of csrc/common/host/torch_map.h
SIZES = ((192, 256), (203, 251))  # runs of pixels on the border of a vector, and elsewhere
ORDERS = (torch.contiguous_format, torch.channels_last)


def loss(x: Tensor, labels: Tensor) -> Tensor:
    return mk.focal_loss(x, labels, reduction="none", ignore_index=255)


def means(x: Tensor, labels: Tensor) -> Tensor:
    return mk.class_centers(x, labels, num_classes=CLASSES, ignore_index=255)


def similarity(x: Tensor, labels: Tensor) -> Tensor:
    return mk.center_similarity(x, torch.linspace(-1, 1, CLASSES * CLASSES).sin().view(CLASSES, CLASSES))


def refined(x: Tensor, labels: Tensor) -> Tensor:
    offsets = torch.linspace(0, 9, 2 * labels[0].numel()).sin().view(1, 2, *labels.shape[1:])
    return mk.refine_upsample(x, offsets.expand(len(x), -1, -1, -1).contiguous())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("function", [loss, means, similarity, refined])
def test_a_large_batch_is_its_images(
    function: Callable[[Tensor, Tensor], Tensor], order: torch.memory_format, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, CLASSES, *size, generator=generator).contiguous(memory_format=order)
    labels = torch.randint(CLASSES, (BATCH, *size), generator=generator).masked_fill_(x[:, 0] > 1.5, 255)
    assert x.nbytes > CACHED > x[:1].nbytes

    def result_and_gradient(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        result = function(x, labels)
        return result.detach(), torch.autograd.grad(result, x, result.detach())[0]

    parts = [result_and_gradient(x[i : i + 1], labels[i : i + 1]) for i in range(BATCH)]
    for whole, images in zip(result_and_gradient(x, labels), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(images), rtol=0, atol=0)
