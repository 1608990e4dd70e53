"""CPU kernels of the refine family, in the extension (csrc/refine)."""

from __future__ import annotations

from torch import Tensor

from ..core.library import define_kernel, ops
from .op import RefineInputs

INPUTS = "Tensor features, Tensor offsets, Tensor? neighbor_logits, bool align_corners, bool zeros, "
define_kernel(f"refine_fwd_kernel({INPUTS} Tensor(a!) output) -> ()")
define_kernel(
    f"refine_bwd_kernel({INPUTS} Tensor grad_output, Tensor(a!)? grad_features, Tensor(b!)? grad_offsets, "
    "Tensor(c!)? grad_neighbor_logits) -> ()"
)


def refine_fwd_kernel(inputs: RefineInputs, output: Tensor) -> None:
    """See op.py."""
    ops.refine_fwd_kernel(*inputs, output)


def refine_bwd_kernel(
    inputs: RefineInputs,
    grad_output: Tensor,
    grad_features: Tensor | None,
    grad_offsets: Tensor | None,
    grad_neighbor_logits: Tensor | None,
) -> None:
    """See op.py."""
    ops.refine_bwd_kernel(*inputs, grad_output, grad_features, grad_offsets, grad_neighbor_logits)
