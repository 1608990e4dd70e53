"""CUDA kernel of the distill family: the op of cpu.py, which follows the device of its tensors."""

from .cpu import distill_kernel

__all__ = ["distill_kernel"]
