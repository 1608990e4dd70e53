"""Matrix products in the dtype of their factors."""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y in the dtype of x, also under autocast."""
    if x.is_meta:  # which has no autocast
        return x @ y
    with torch.autocast(x.device.type, enabled=False):
        return x @ y
