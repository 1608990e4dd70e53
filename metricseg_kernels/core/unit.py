"""Unit norm, with one rule for norms near 0."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-12  # least norm to divide by


def unit(x: Tensor, dim: int, eps: float = EPS) -> Tensor:
    """x / max(|x|, eps), as F.normalize; but a vector of norm 0 gives zeros with a zero gradient."""
    square = x.square().sum(dim, keepdim=True)
    # the norm of a zero vector has no gradient
    norm = torch.where(square == 0, 1.0, square).sqrt()
    return torch.where(square == 0, 0.0, x / norm.clamp(min=eps))
