"""Layers for networks of any code base, over `metricseg_kernels`. Needs torch and numpy alone."""

from metricseg.layers.ccs import CCSLayer

__all__ = ["CCSLayer"]
