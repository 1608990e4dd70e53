"""The pull of pixels to the centers of their classes, from their target similarities t_i, in plain PyTorch.

    pull = mean_b mean_{k present in b} (1 - mean_{i of class k in b} t_i / scale)

pull_stats [B, 1 + K] are what its gradient is divided by, -grad_pull / stats_b0 / stats_bk at a pixel of class k: first
B times the number of classes of the image, then scale times the pixels of each class; at least one of either. An image
with a label out of range makes the pull NaN. It has stats_b0 = inf, so that its gradient is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_present(values: Tensor, present: Tensor) -> Tensor:
    """The mean over images of the mean over the classes that they have, of values [B, K]."""
    mean = (values * present).sum(1) / present.sum(1).clamp(min=1)
    return mean.sum() / max(mean.numel(), 1)


def finish_pull(sums: Tensor, mass: Tensor, scale: float, pull: Tensor, pull_stats: Tensor) -> None:
    """Fill the outputs from sums [B, K] of target similarities and numbers of pixels [B, K]."""
    present, divisors = mass > 0, scale * mass.clamp(min=1)
    pull.copy_(mean_of_present(1 - sums / divisors, present))
    torch.mul(present.sum(1).clamp(min=1), max(len(mass), 1), out=pull_stats[:, 0])
    pull_stats[:, 1:] = divisors


def class_gradients(grad_pull: Tensor, pull_stats: Tensor) -> Tensor:
    """The gradient of t_i at the pixels of each class, [B, K]."""
    images = max(len(pull_stats), 1)
    return -(grad_pull / images / (pull_stats[:, :1] / images)) / pull_stats[:, 1:]
