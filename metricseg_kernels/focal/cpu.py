"""CPU kernels of the focal family, in the extension (csrc/focal)."""

from ..core.library import ops

focal_kernel = ops.focal_kernel
kth_largest_kernel = ops.kth_largest_kernel
sigmoid_focal_kernel = ops.sigmoid_focal_kernel
