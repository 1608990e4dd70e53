"""CUDA kernels of the retrieval family, in the extension (csrc/retrieval)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops

define_kernel(
    "topk_rows_kernel(Tensor queries, Tensor bank, Tensor? valid, Tensor(a!) values, Tensor(b!) indices) -> ()"
)


def topk_kernel(queries: Tensor, bank: Tensor, valid: Tensor | None, values: Tensor, indices: Tensor) -> None:
    """See op.py."""
    ops.topk_rows_kernel(queries, bank, None if valid is None else valid.view(torch.uint8), values, indices)
