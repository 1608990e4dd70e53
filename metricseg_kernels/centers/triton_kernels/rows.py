"""Triton kernels of the centers family on rows: what is of size [K, C] or [K], and the sums that lead there.

`fold_fwd`, `fold_bwd`: a program takes a center [C]; formulas: `op.folded`.
`means_fwd`, `means_bwd`: centers from the sums of parts, and the gradients of these sums; formulas: means.py.
`pull_sums`, `pull_mean`: target similarities by class, and the mean over classes and images; formulas: pull.py.
Sums of parts are added in a fixed order. Derivation: docs/kernels/centers.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import divide, root
from ...engines.pixel_rows.triton_kernels import load_classes


@triton.jit
def load_center(centers, channels, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """(channels [BLOCK], whether there are such, the center)."""
    d = tl.arange(0, BLOCK)
    p_center = centers + tl.program_id(0).to(tl.int64) * channels
    return d, d < channels, tl.load(p_center + d, mask=d < channels, other=0.0).to(ACC)


@triton.jit(do_not_specialize=["channels"])
def fold_fwd(centers, weights, bias, channels, scale: tl.float64, METRIC: tl.constexpr, LEAST: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    """weights [K, C], and bias [K] of "euclidean"."""
    ACC: tl.constexpr = weights.dtype.element_ty
    d, known, x = load_center(centers, channels, ACC, BLOCK)
    s = tl.full((), scale, ACC)
    if METRIC == "cosine":
        square = tl.sum(x * x, 0)
        norm = tl.maximum(root(square), tl.full((), LEAST, ACC))
        w = s * tl.where(square == 0.0, 0.0, divide(x, tl.broadcast_to(norm, x.shape)))
    elif METRIC == "dot":
        w = s * x
    else:
        w = 2.0 * s * x
        tl.store(bias + tl.program_id(0), -s * tl.sum(x * x, 0))
    tl.store(weights + tl.program_id(0).to(tl.int64) * channels + d, w, mask=known)


@triton.jit(do_not_specialize=["channels"])
def fold_bwd(grad_weights, grad_bias, centers, grad, channels, scale: tl.float64, METRIC: tl.constexpr,
             LEAST: tl.constexpr, WITH_BIAS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The gradient of centers [K, C]."""
    ACC: tl.constexpr = grad_weights.dtype.element_ty
    d, known, x = load_center(centers, channels, ACC, BLOCK)
    offset = tl.program_id(0).to(tl.int64) * channels
    g = tl.load(grad_weights + offset + d, mask=known, other=0.0)
    s = tl.full((), scale, ACC)
    if METRIC == "cosine":
        # s (g - u <u, g>) / |x|,  u = x / |x|; of a norm below LEAST, s g / LEAST; of 0, 0
        square = tl.sum(x * x, 0)
        norm = root(square)
        least = tl.maximum(norm, tl.full((), LEAST, ACC))
        u = divide(x, tl.broadcast_to(least, x.shape))
        along = tl.where(norm < LEAST, 0.0, tl.sum(u * g, 0))
        value = tl.where(square == 0.0, 0.0, s * divide(g - u * along, tl.broadcast_to(least, x.shape)))
    elif METRIC == "dot":
        value = s * g
    else:
        value = g
        if WITH_BIAS:
            value -= x * tl.load(grad_bias + tl.program_id(0))
        value *= 2.0 * s
    tl.store(grad + offset + d, value.to(grad.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["parts", "classes", "channels"])
def means_fwd(shares, masses, lowest, centers, kept, totals, present, parts, classes, channels, least: tl.float64,
              BY_MASS: tl.constexpr, HARD: tl.constexpr, KEEPS: tl.constexpr, BP: tl.constexpr,
              BC: tl.constexpr):  # fmt: skip
    """BC channels of a center, from shares [B, parts, K, C], masses [B, parts, K] and lowest labels [B, parts]."""
    ACC: tl.constexpr = shares.dtype.element_ty
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    image, k = row // classes, row % classes
    sums, mass, bad = tl.zeros((BP, BC), ACC), tl.zeros((BP,), ACC), tl.zeros((BP,), tl.int32)
    for first in range(0, parts, BP):
        p = first + tl.arange(0, BP)
        part = image * parts + p
        p_mass = part * classes + k
        known = p < parts
        mask = known[:, None] & (c < channels)[None, :]
        sums += tl.load(shares + p_mass[:, None] * channels + c[None, :], mask=mask, other=0.0)
        mass += tl.load(masses + p_mass, mask=known, other=0.0)
        if HARD:
            bad = tl.minimum(bad, tl.load(lowest + part, mask=known, other=0))
    number = tl.sum(mass, 0)
    total = tl.full((), least, ACC)
    if BY_MASS:
        total += number
    if HARD:
        total = tl.where(tl.min(bad, 0) < -1, float("nan"), total)
    mean = divide(tl.sum(sums, 0), tl.broadcast_to(total, (BC,)))
    tl.store(centers + row * channels + c, mean.to(centers.dtype.element_ty), mask=c < channels)
    if KEEPS:
        tl.store(kept + row * channels + c, mean, mask=c < channels)
    first_chunk = tl.program_id(1) == 0
    tl.store(totals + row, total, mask=first_chunk)
    tl.store(present + row, number > 0.0, mask=first_chunk)


@triton.jit(do_not_specialize=["channels"])
def means_bwd(grad, means, totals, grad_sums, grad_mass, channels, HARD: tl.constexpr, BY_MASS: tl.constexpr,
              BC: tl.constexpr):  # fmt: skip
    """The gradients of a center's sums [C] and mass; of hard membership that of the sums, 0 if the total is NaN."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.load(totals + row)
    along = tl.zeros((BC,), total.dtype)
    for first in range(0, channels, BC):
        c = first + tl.arange(0, BC)
        known = c < channels
        g = tl.load(grad + row * channels + c, mask=known, other=0.0).to(total.dtype)
        share = divide(g, tl.broadcast_to(total, (BC,)))
        if HARD:
            share = tl.where(total == total, share, 0.0)
        tl.store(grad_sums + row * channels + c, share.to(grad_sums.dtype.element_ty), mask=known)
        if BY_MASS:
            along += share * tl.load(means + row * channels + c, mask=known, other=0.0)
    if not HARD:
        tl.store(grad_mass + row, -tl.sum(along, 0))


@triton.jit(do_not_specialize=["parts", "blocks", "tiles", "ignore_index"])
def pull_sums(target, labels, shares, lowest, ignore_index, classes, N, tiles, parts, blocks, BK: tl.constexpr,
              BN: tl.constexpr):  # fmt: skip
    """Sums of target similarities and numbers of pixels of BK classes in a part of an image, shares [B, parts, 2, K];
    and the lowest label [B, parts], below -1 if one is out of range."""
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    ACC: tl.constexpr = target.dtype.element_ty
    image, k = part // parts, block * BK + tl.arange(0, BK)
    sums, counts, bad = tl.zeros((BK, BN), ACC), tl.zeros((BK, BN), ACC), tl.zeros((BN,), tl.int32)
    begin = (tl.cast(tiles, tl.int64) * (part % parts) // parts).to(tl.int32)
    end = (tl.cast(tiles, tl.int64) * (part % parts + 1) // parts).to(tl.int32)
    for t in range(begin, end):
        n = t * BN + tl.arange(0, BN)
        label = load_classes(labels, image, n, classes, N, ignore_index)
        value = tl.load(target + tl.cast(image, tl.int64) * N + n, mask=label >= 0, other=0.0)
        here = k[:, None] == label[None, :]
        sums += tl.where(here, value[None, :], 0.0)
        counts += here.to(ACC)
        bad = tl.minimum(bad, label)
    p_share = shares + tl.cast(part, tl.int64) * 2 * classes + k
    tl.store(p_share, tl.sum(sums, 1), mask=k < classes)
    tl.store(p_share + classes, tl.sum(counts, 1), mask=k < classes)
    tl.store(lowest + part, tl.min(bad, 0), mask=block == 0)


@triton.jit(do_not_specialize=["images", "parts", "classes"])
def pull_mean(shares, lowest, pull, stats, images, parts, classes, scale: tl.float64, BP: tl.constexpr,
              BK: tl.constexpr):  # fmt: skip
    """pull [] and pull_stats [B, 1 + K], by one program: O(B parts K) sums."""
    ACC: tl.constexpr = shares.dtype.element_ty
    total, count = tl.zeros((), ACC), tl.cast(tl.maximum(images, 1), ACC)
    for image in range(images):
        p = tl.arange(0, BP)
        part = tl.cast(image, tl.int64) * parts + p
        far, there = tl.zeros((BK,), ACC), tl.zeros((BK,), ACC)
        p_stats = stats + tl.cast(image, tl.int64) * (classes + 1)
        for first in range(0, classes, BK):
            k = first + tl.arange(0, BK)
            mask = (p < parts)[:, None] & (k < classes)[None, :]
            p_share = shares + part[:, None] * 2 * classes + k[None, :]
            sums = tl.sum(tl.load(p_share, mask=mask, other=0.0), 0)
            mass = tl.sum(tl.load(p_share + classes, mask=mask, other=0.0), 0)
            divisor = tl.full((), scale, ACC) * tl.maximum(mass, 1.0)
            far += tl.where(mass > 0.0, 1.0 - sums / divisor, 0.0)
            there += (mass > 0.0).to(ACC)
            tl.store(p_stats + 1 + k, divisor, mask=k < classes)
        known = tl.maximum(tl.sum(there, 0), 1.0)
        bad = tl.min(tl.load(lowest + part, mask=p < parts, other=0), 0) < -1
        tl.store(p_stats, tl.where(bad, float("inf"), count * known))
        total += tl.where(bad, float("nan"), tl.sum(far, 0) / known)
    tl.store(pull, total / count)
