"""CPU kernel of the distill family, in the extension (csrc/distill)."""

from ..core.library import ops

distill_kernel = ops.distill_kernel
