"""Device code of "nca": weights of a ratio of two LSEs; the phases are those of softmax.py."""

import triton
import triton.language as tl

from ...core.triton_kernels import in_base, power_of_base
from ...engines.row_pairs.triton_kernels.tiles import pair_masks
from ..forms import NcaCoefs


@triton.jit
def nca_weights(s, pairs, sides):
    """step softmax(s) over negatives, -step softmax(s) over positives."""
    scale = in_base(pairs.numbers.constants[0])
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        c = NcaCoefs(*sides[i])
        w += c.step * power_of_base((s - c.negative_max) * scale - in_base(c.negative_lse))
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        w = tl.where(negative, w, 0.0)
        for i in tl.static_range(len(sides)):
            c = NcaCoefs(*sides[i])
            pull = c.step * power_of_base((s - c.positive_max) * scale - in_base(c.positive_lse))
            w -= tl.where(positive, pull, 0.0)
    return w
