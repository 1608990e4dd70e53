"""CPU kernels of the lovasz family, in the extension (csrc/lovasz)."""

from __future__ import annotations

from torch import Tensor

from ..core.library import define_kernel, ops
from .op import SCHEMA, Inputs

define_kernel(f"lovasz_fwd_kernel({SCHEMA}, Tensor(a!) counts, Tensor(b!) sums, Tensor(c!) totals) -> ()")
define_kernel(f"lovasz_bwd_kernel({SCHEMA}, Tensor table, Tensor(a!) grad) -> ()")


def lovasz_fwd_kernel(inputs: Inputs, counts: Tensor, sums: Tensor, totals: Tensor) -> None:
    """See op.py."""
    ops.lovasz_fwd_kernel(*inputs, counts, sums, totals)


def lovasz_bwd_kernel(inputs: Inputs, table: Tensor, grad: Tensor) -> None:
    """See op.py; table: the gradients of the sums in the accumulator dtype."""
    ops.lovasz_bwd_kernel(*inputs, table, grad)
