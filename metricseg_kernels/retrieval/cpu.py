"""CPU kernel of the retrieval family: products of engines/row_pairs a tile at a time, the best of each row in C++.

A bank of another dtype is converted a tile at a time. A tile takes 4 MB, whatever the size of the bank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs import cpu as _products  # noqa: F401  (defines its kernel)

define_kernel(
    "topk_tile_kernel(Tensor products, Tensor? valid, int first, Tensor(a!) values, Tensor(b!) indices) -> ()"
)

ROWS, COLUMNS = 1024, 1024  # of a tile


def topk_kernel(queries: Tensor, bank: Tensor, valid: Tensor | None, values: Tensor, indices: Tensor) -> None:
    """See op.py."""
    values.fill_(-torch.inf)
    indices.fill_(-1)
    queries = queries.to(values.dtype)
    for q0 in range(0, len(queries), ROWS):
        rows = queries[q0 : q0 + ROWS]
        buffer = rows.new_empty(len(rows) * min(COLUMNS, len(bank)))
        for m0 in range(0, len(bank), COLUMNS):
            columns = bank[m0 : m0 + COLUMNS].to(values.dtype)
            products = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            ops.row_pairs_multiply_kernel(rows, columns.t(), None, None, 1.0, False, products)
            some = None if valid is None else valid[m0 : m0 + COLUMNS].contiguous()
            ops.topk_tile_kernel(products, some, m0, values[q0 : q0 + ROWS], indices[q0 : q0 + ROWS])
