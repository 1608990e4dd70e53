"""CPU kernels of the region family, in the extension (csrc/region)."""

from __future__ import annotations

from torch import Tensor

from ..core.library import define_kernel, ops
from .op import SCHEMA, Inputs

define_kernel(f"region_fwd_kernel({SCHEMA}, Tensor(a!) sums, Tensor(b!) loss, Tensor(c!) totals) -> ()")
define_kernel(f"region_bwd_kernel({SCHEMA}, Tensor grad_sums, Tensor grad_loss, Tensor(a!) grad) -> ()")


def region_fwd_kernel(inputs: Inputs, sums: Tensor, loss: Tensor, totals: Tensor) -> None:
    """See op.py."""
    ops.region_fwd_kernel(*inputs, sums, loss, totals)


def region_bwd_kernel(inputs: Inputs, grad_sums: Tensor, grad_loss: Tensor, grad: Tensor) -> None:
    """See op.py."""
    ops.region_bwd_kernel(*inputs, grad_sums, grad_loss, grad)
