"""Private op of the retrieval family: schema, allocation, fake. Derivation: docs/kernels/retrieval.md.

A backend's topk_kernel(queries, bank, valid, values, indices) fills values [Q, k] and indices [Q, k].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.library import define_op, ops

kernels = functools.partial(backends.kernels, "retrieval")  # (backend) -> module


def _outputs(queries: Tensor, bank: Tensor, valid: Tensor | None, k: int, backend: str) -> tuple[Tensor, Tensor]:
    values = queries.new_empty((queries.shape[0], k), dtype=checks.accumulator(queries.dtype))
    return values, queries.new_empty(values.shape, dtype=torch.int64)


def _topk(queries: Tensor, bank: Tensor, valid: Tensor | None, k: int, backend: str) -> tuple[Tensor, Tensor]:
    values, indices = _outputs(queries, bank, valid, k, backend)
    kernels(backend).topk_kernel(queries, bank, valid, values, indices)
    return values, indices


define_op(
    "topk_similarity(Tensor queries, Tensor bank, Tensor? valid, int k, str backend) -> (Tensor, Tensor)",
    _topk,
    _outputs,
)
topk = ops.topk_similarity
