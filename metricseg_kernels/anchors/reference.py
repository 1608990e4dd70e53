"""Specification of the anchors family in plain PyTorch: every other backend must agree with it, bit for bit.

Every shape is known beforehand (no nonzero, unique, boolean index, item), so on CUDA it runs without a host sync.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import accumulator
from ..core.labels import is_bad, is_class, is_label
from ..core.unit import unit

SAMPLE_COUNTS = 2  # labels out of range, the largest such label or 0
GOLDEN = 0x9E3779B97F4A7C15
PIXELS, SLOTS = 0, 1  # streams of keys


class SampleInputs(NamedTuple):
    """Inputs of the choice.

    Preferred are pixels that predictions get wrong, and those of `first`; all of them if neither is given.
    """

    labels: Tensor  # [B, h, w]
    predictions: Tensor | None  # [B, h, w]
    first: Tensor | None  # [B, h, w] bool
    seed: Tensor  # []
    max_samples: int
    max_views: int
    min_pixels: int
    half: bool  # of the views from each group, if both have enough
    num_classes: int
    ignore_index: int
    ignore_label: int


def signed(bits: int) -> int:
    """The int64 with the bits of a uint64; PyTorch's int64 sums and products wrap as those of uint64 do."""
    return bits - (1 << 64) if bits >> 63 else bits


def mix(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift) & ((1 << 64 - shift) - 1)) * signed(factor)
    return z ^ (z >> 31) & ((1 << 33) - 1)


def keys(seed: Tensor, stream: int, count: int) -> Tensor:
    """Random keys [count] int64 of the counters 0, 1, ...: `mix` is a bijection, so no two are equal.

    Returned with the top bit flipped: their signed order is the unsigned order of the keys.
    """
    counters = torch.arange(count, device=seed.device) * signed(GOLDEN)
    return mix(mix(seed + signed(GOLDEN * (stream + 1) % (1 << 64))) + counters) ^ signed(1 << 63)


def preferred(
    strategy: str,
    labels: Tensor,
    predictions: Tensor | None,
    confidence: Tensor | None,
    threshold: float,
    radius: int,
    ignore_index: int,
) -> tuple[Tensor | None, Tensor | None]:
    """The pixels that a strategy takes first: (predictions, first) of SampleInputs."""
    if strategy == "boundary":
        # the labels around a pixel differ: their largest is not their smallest
        ignored = is_label(labels, ignore_index)
        values = labels.float()
        largest = _largest_around(values.masked_fill(ignored, -torch.inf), radius)
        smallest = -_largest_around((-values).masked_fill(ignored, -torch.inf), radius)
        return None, largest != smallest
    if strategy == "semi_hard":
        assert confidence is not None
        return predictions, ~(confidence.detach() >= threshold)
    return (predictions if strategy == "hard" else None), None


def first_group(labels: Tensor, predictions: Tensor | None, first: Tensor | None) -> Tensor | None:
    """[B, h, w] bool: the preferred pixels of SampleInputs; None for all."""
    if predictions is None:
        return first
    wrong = predictions != labels
    return wrong if first is None else first | wrong


def _largest_around(values: Tensor, radius: int) -> Tensor:
    """The largest of each (2 radius + 1)^2 window, one axis after the other."""
    width = 2 * radius + 1
    if values.numel() == 0:
        return values
    return F.max_pool2d(F.max_pool2d(values[:, None], (1, width), 1, (0, radius)), (width, 1), 1, (radius, 0))[:, 0]


def sample(inputs: SampleInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(index [S], labels [S], count [], bad [2]). A slot is numbered image K + class, a cell 2 slot + group."""
    labels, predictions, first, seed, max_samples, _, _, _, num_classes, ignore_index, ignore_label = inputs
    first = first_group(labels, predictions, first)
    batch, pixels, slots = labels.shape[0], labels.shape[1] * labels.shape[2], labels.shape[0] * num_classes
    flat = labels.reshape(-1).long()  # [N]
    known = is_class(flat, num_classes, ignore_index)
    image = torch.arange(batch, device=flat.device)[:, None].expand(batch, pixels).reshape(-1)
    group = 0 if first is None else (~first).reshape(-1).long()
    cell = torch.where(known, 2 * (image * num_classes + flat) + group, 2 * slots)  # [N]
    have = flat.new_zeros(2 * slots + 1).scatter_add_(0, cell, torch.ones_like(cell))
    quota = _quotas(have[:-1].view(slots, 2), inputs)

    # pixels by cell, and by key within a cell
    order = keys(seed, PIXELS, flat.numel()).argsort()
    order = order[cell[order].argsort(stable=True)]  # [N]
    cell = cell[order]
    rank = torch.arange(flat.numel(), device=flat.device) - (have.cumsum(0) - have)[cell]
    quota = F.pad(quota.reshape(-1), (0, 1))  # and none of the pixels that are in no cell
    place = torch.where(rank < quota[cell], (quota.cumsum(0) - quota)[cell] + rank, max_samples)
    index = flat.new_full((max_samples + 1,), -1).scatter_(0, place, order)[:-1]
    sampled = flat.new_full((max_samples + 1,), ignore_label).scatter_(0, place, flat[order])[:-1]
    return index, sampled, quota.sum(), _count_bad(flat, is_bad(flat, num_classes, ignore_index))


def _quotas(have: Tensor, inputs: SampleInputs) -> Tensor:
    """[slots, 2]: number of pixels taken from either group of each slot, of the `have` [slots, 2] in it."""
    max_samples, open_ = inputs.max_samples, have.sum(1) > inputs.min_pixels
    # if there are more slots than samples, those with the smallest keys
    order = keys(inputs.seed, SLOTS, open_.numel()).argsort()
    order = order[(~open_[order]).long().argsort(stable=True)]
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    open_ = open_ & (rank < max_samples)

    views = (max_samples // open_.sum().clamp(min=1)).clamp(1, inputs.max_views)
    first = views - have[:, 1] if inputs.half else views
    if inputs.half:
        first = torch.maximum(first, views // 2)
    first = torch.minimum(have[:, 0], first)
    second = torch.minimum(have[:, 1], views - first)
    return torch.where(open_[:, None], torch.stack([first, second], 1), 0)


def _count_bad(labels: Tensor, bad: Tensor) -> Tensor:
    count = bad.sum()
    largest = torch.where(bad, labels, torch.iinfo(torch.int64).min).amax() if labels.numel() else count
    return torch.stack([count, torch.where(count > 0, largest, 0)])


def gather(features: Tensor, index: Tensor, normalize: bool, eps: float) -> Tensor:
    """[S, C] rows x / max(|x|, eps) of the pixels `index`; zeros for -1, NaN for an index out of range."""
    _, _, height, width = features.shape
    known = (index >= 0) & (index < features.shape[0] * height * width)
    if features.numel() == 0:
        rows = features.sum().expand(index.shape[0], features.shape[1])
        return torch.where((index == -1)[:, None], rows, torch.nan)
    at = torch.where(known, index, 0)
    rows = features[at // (height * width), :, at // width % height, at % width].to(accumulator(features.dtype))
    rows = torch.where(known[:, None], rows, 0.0)
    if normalize:
        rows = unit(rows, 1, eps)
    return torch.where((known | (index == -1))[:, None], rows, torch.nan).to(features.dtype)
