"""CPU kernels of the anchors family, in the extension (csrc/anchors)."""

from ..core.library import ops

gather_pixels_bwd_kernel = ops.gather_pixels_bwd_kernel
gather_pixels_fwd_kernel = ops.gather_pixels_fwd_kernel
sample_anchors_kernel = ops.sample_anchors_kernel
