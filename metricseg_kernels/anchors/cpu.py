"""CPU kernels of the anchors family, in the extension (csrc/anchors)."""

from __future__ import annotations

from ..core.library import define_kernel, ops
from .op import INPUTS, Sampled
from .reference import SampleInputs

define_kernel(
    f"sample_anchors_kernel({INPUTS}, Tensor(a!) index, Tensor(b!) sampled, Tensor(c!) count, Tensor(d!) bad) -> ()"
)

gather_pixels_bwd_kernel = ops.gather_pixels_bwd_kernel
gather_pixels_fwd_kernel = ops.gather_pixels_fwd_kernel


def sample_anchors_kernel(inputs: SampleInputs, found: Sampled) -> None:
    """See op.py."""
    ops.sample_anchors_kernel(*inputs, *found)
