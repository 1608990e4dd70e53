"""CUDA kernels of the predict family: the ops of cpu.py, which follow the device of their tensors."""

from .cpu import confusion_kernel, predict_kernel

__all__ = ["confusion_kernel", "predict_kernel"]
