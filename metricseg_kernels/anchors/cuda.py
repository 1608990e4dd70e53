"""CUDA kernels of the anchors family: the ops of cpu.py, which follow the device of their tensors."""

from .cpu import gather_pixels_bwd_kernel, gather_pixels_fwd_kernel, sample_anchors_kernel

__all__ = ["gather_pixels_bwd_kernel", "gather_pixels_fwd_kernel", "sample_anchors_kernel"]
