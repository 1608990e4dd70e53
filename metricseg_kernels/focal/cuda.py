"""CUDA kernels of the focal family: the ops of cpu.py, which follow the device of their tensors."""

from .cpu import focal_kernel, kth_largest_kernel, sigmoid_focal_kernel

__all__ = ["focal_kernel", "kth_largest_kernel", "sigmoid_focal_kernel"]
