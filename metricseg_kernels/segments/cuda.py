"""CUDA kernels of the segments family: ops of cpu.py, which follow the device of their tensors, and sums that take
strided gradients."""

from ..core.library import define_kernel, ops
from .cpu import spherical_kmeans_kernel, split_by_label_kernel

__all__ = ["segment_sums_bwd_kernel", "segment_sums_fwd_kernel", "spherical_kmeans_kernel", "split_by_label_kernel"]

define_kernel("segment_sums_fwd_kernel(Tensor x, Tensor ids, Tensor(a!) sums, Tensor(b!) mass) -> ()")
define_kernel("segment_sums_bwd_kernel(Tensor grad_sums, Tensor ids, Tensor(a!) grad) -> ()")

segment_sums_fwd_kernel = ops.segment_sums_fwd_kernel
segment_sums_bwd_kernel = ops.segment_sums_bwd_kernel
