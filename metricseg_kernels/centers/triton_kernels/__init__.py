"""Triton kernels of the centers family: on pixels, and on rows."""
