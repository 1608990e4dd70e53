"""CUDA kernels of the region family: the ops of cpu.py, which follow the device of their tensors."""

from .cpu import region_bwd_kernel, region_fwd_kernel

__all__ = ["region_bwd_kernel", "region_fwd_kernel"]
