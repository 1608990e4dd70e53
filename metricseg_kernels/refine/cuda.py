"""CUDA kernels of the refine family: the ops of cpu.py, which follow the device of their tensors."""

from .cpu import refine_bwd_kernel, refine_fwd_kernel

__all__ = ["refine_bwd_kernel", "refine_fwd_kernel"]
