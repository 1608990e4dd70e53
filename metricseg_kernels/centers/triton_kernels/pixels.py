"""Triton kernels of the centers family, on pixels: the products of engines/pixel_rows/triton_kernels.py.

`similarity`, `soft_gradient`: P with an epilogue; all classes of a pixel, or a block of them, are in registers.
`gradients`: S and T in one walk over a range of pixels; sums go to rows [parts, K, C], added in a fixed order.
`spread`: T in a walk over K, if K has more than one block.
`along_pixels`, `log_sums`: one number for each pixel, from inputs as small as the logits.
Features are read once, and L2 serves the other reads. Bytes, operations and derivation: docs/kernels/centers.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import exp
from ...engines.pixel_rows.triton_kernels import (
    VARYING,
    class_blocks,
    dot,
    load_classes,
    load_labels,
    load_rows,
    load_tile,
    multiply,
    operand,
    pointers,
    zero_blocks,
)


@triton.jit
def locate(inner, tiles, BN: tl.constexpr):
    """This program's index among those of a tile, its image, and its pixels [BN]."""
    t = tl.program_id(0) // inner
    return tl.program_id(0) % inner, t // tiles, t % tiles * BN + tl.arange(0, BN)


@triton.jit
def inverse(norm):
    """1 / |x| as core/unit.py has it."""
    return tl.where(norm == 0, 0.0, 1.0 / tl.where(norm < 1e-12, 1e-12, norm))


@triton.jit
def store_tile(map, b, k, n, K, N, values):
    """Store values [k, n]."""
    tl.store(pointers(map, b, k, n), values.to(map.data.dtype.element_ty), mask=(k < K)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=VARYING)
def similarity(x, rows, bias, labels, square: tl.float64, ignore_index, logits, target_similarity, norms, N, tiles,
               blocks, tile):  # fmt: skip
    """logits [B, K, N] of BN pixels and a block of K; |x| [B, N]; target_similarity [B, N] from the label's block."""
    block, b, n = locate(blocks, tiles, tile.BN)
    ks = class_blocks(block * tile.BK, tile)
    with_squares: tl.constexpr = norms is not None or bias is not None
    sums, squares = multiply(x, rows, b, n, N, ks, tile, with_squares)
    p_pixels = b.to(tl.int64) * N + n
    shift = tl.zeros_like(squares)
    factor = shift + 1.0
    if norms is not None:
        norm = tl.sqrt(squares)
        factor = inverse(norm)
        if block == 0:
            tl.store(norms + p_pixels, norm, mask=n < N)
    if bias is not None:
        shift = squares * tl.full((), square, tile.ACC)
    if labels.data is not None:
        label = load_labels(labels, b, n, rows.K, N, ignore_index)
    picked = tl.zeros_like(squares)
    for i in tl.static_range(len(ks)):
        # r <x, w> + bias - square |x|^2
        z = sums[i] * factor[:, None]  # [BN, k]
        if labels.data is not None:
            picked += tl.sum(tl.where(label[:, None] == ks[i][None, :], z, 0.0), 1)
        if bias is not None:
            p_bias = bias + b.to(tl.int64) * rows.K + ks[i]
            z += tl.load(p_bias, mask=ks[i] < rows.K, other=0.0)[None, :] - shift[:, None]
        store_tile(logits, b, ks[i], n, rows.K, N, tl.trans(z))
    if labels.data is not None:
        here = tl.where(label < 0, 0, label // tile.BK) == block
        tl.store(target_similarity + p_pixels, picked, mask=here & (n < N))


@triton.jit(do_not_specialize=VARYING)
def log_sums(logits, out, K, N, tiles, BK: tl.constexpr, BN: tl.constexpr):
    """log sum_k exp(logits_kn) [B, N]."""
    _, b, n = locate(1, tiles, BN)
    ACC: tl.constexpr = out.dtype.element_ty
    top = tl.full((BN,), float("-inf"), ACC)
    total = tl.zeros((BN,), ACC)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        z = load_tile(logits, b, k, n, K, N).to(ACC)  # [BK, BN]
        z = tl.where((k < K)[:, None], z, float("-inf"))
        before = top
        top = tl.maximum(top, tl.max(z, 0))
        shift = tl.where(top == float("-inf"), 0.0, top)
        total = total * exp(before - shift) + tl.sum(exp(z - shift[None, :]), 0)
    # if all logits are -inf the softmax is NaN, as in PyTorch
    tl.store(out + b.to(tl.int64) * N + n, tl.log(total) + top, mask=n < N)


@triton.jit
def load_pixels(a, b, n, K, N, ignore_index, tile):
    """Inputs of A at pixels n [n]: r, log-sum-exps, or labels."""
    if a.kind == "hard":
        return load_classes(a.map, b, n, K, N, ignore_index)
    elif a.pixels is None:
        return tl.full(n.shape, 1.0, tile.ACC)
    else:
        values = tl.load(a.pixels + tl.cast(b, tl.int64) * N + n, mask=n < N, other=0.0)
        return inverse(values) if a.kind == "gradient" else values


@triton.jit
def weigh(a, at, b, n, k, K, N, tile):
    """A [k, n], 0 beyond K and N: r G, softmax_k of logits, or whether k is the label."""
    if a.kind == "hard":
        return (at[None, :] == k[:, None]).to(tile.ACC)
    else:
        values = load_tile(a.map, b, k, n, K, N).to(tile.ACC)
        if a.kind == "soft":
            return tl.where((k < K)[:, None] & (n < N)[None, :], exp(values - at[None, :]), 0.0)
        else:
            return values * at[None, :]


@triton.jit
def load_own(a, b, n, K, N, ignore_index):
    """(label, O) of pixels n; (-1, 0) without a label."""
    label = load_labels(a.labels, b, n, K, N, ignore_index)
    return label, tl.load(a.own + tl.cast(b, tl.int64) * N + n, mask=label >= 0, other=0.0)


@triton.jit(do_not_specialize=VARYING)
def along_pixels(a, logits, target_similarity, grad_pull, pull_stats, out, square: tl.float64, ignore_index, K, N,
                 tiles, BK: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """The part of dx = t - out x along x, out [B, N]: r^2 (sum_k G_k z_k + O target_similarity), or 2 square sum_k
    G_k; and O, own [B, N], as pull.py has it."""
    _, b, n = locate(1, tiles, BN)
    ACC: tl.constexpr = out.dtype.element_ty
    total = tl.zeros((BK, BN), ACC)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        g = load_tile(a.map, b, k, n, K, N).to(ACC)  # [BK, BN]
        if logits.data is not None:
            g *= load_tile(logits, b, k, n, K, N).to(ACC)
        total += g
    along = tl.sum(total, 0)
    p_pixels = b.to(tl.int64) * N + n
    if logits.data is None:
        along *= tl.full((), 2 * square, ACC)
    else:
        norm = tl.load(a.pixels + p_pixels, mask=n < N, other=0.0)
        r = inverse(norm)
        along *= r
        if a.own is not None:
            label = load_labels(a.labels, b, n, K, N, ignore_index)
            p_stats = pull_stats + b.to(tl.int64) * (K + 1)
            share = -tl.load(grad_pull) / tl.load(p_stats)
            share /= tl.load(p_stats + 1 + label, mask=label >= 0, other=float("inf"))
            along += r * share * tl.load(target_similarity + p_pixels, mask=label >= 0, other=0.0)
            tl.store(a.own + p_pixels, share, mask=n < N)
        along = tl.where(norm < 1e-12, 0.0, r * along)  # a norm below the least is a constant
    tl.store(out + p_pixels, along, mask=n < N)


@triton.jit
def make_gradient(moved, values, along, b, n, N):
    """dx [c, n] from t = W^T A."""
    if along is not None:
        share = tl.load(along + tl.cast(b, tl.int64) * N + n, mask=n < N, other=0.0)
        moved -= values.to(moved.dtype) * share[None, :]
    return moved


@triton.jit(do_not_specialize=VARYING)
def gradients(x, rows, a, along, grad, out, mass, lowest, ignore_index, tiles, group_tiles, N, parts, chunks, tile,
              STAGES: tl.constexpr):  # fmt: skip
    """S of BC channels over a part of a group's pixels, out [groups parts, K, C], with sum_n A_kn, mass [groups parts,
    K], and the lowest label [groups parts], below -1 if one is out of range; and T at these pixels, grad [B, C, N], if
    one block holds all of K. A group is an image, or all."""
    chunk, part, block = tl.program_id(0) % chunks, tl.program_id(0) // chunks, tl.program_id(1)
    K, C, group = rows.K, rows.C, part // parts
    c = chunk * tile.BC + tl.arange(0, tile.BC)
    ks = class_blocks(block * tile.BK, tile)
    sums, masses, kept = zero_blocks(tile.BC, tile), (), ()
    for i in tl.static_range(len(ks)):
        masses += (tl.zeros((tile.KS[i],), tile.ACC),)
        if grad.data is not None:
            kept += (load_rows(rows, group, c, ks[i]),)  # [BC, k]
    lowest_label = tl.zeros((tile.BN,), tl.int32)
    begin = group * group_tiles + (tl.cast(group_tiles, tl.int64) * (part % parts) // parts).to(tl.int32)
    end = group * group_tiles + (tl.cast(group_tiles, tl.int64) * (part % parts + 1) // parts).to(tl.int32)
    for t in tl.range(begin, end, num_stages=STAGES):
        b = t // tiles
        n = t % tiles * tile.BN + tl.arange(0, tile.BN)
        at = load_pixels(a, b, n, K, N, ignore_index, tile)
        if lowest is not None:
            lowest_label = tl.minimum(lowest_label, at)
        moved = tl.zeros((tile.BC, tile.BN), tile.ACC)
        values = moved
        if x.data is not None:
            values = load_tile(x, b, c, n, C, N)
            if a.kind == "hard":
                # pixels without a label may be NaN
                columns = operand(tl.where((at >= 0)[None, :], values, 0.0), tile)
            elif x.channels_last:
                columns = operand(values, tile)
            else:
                columns = values.to(tile.DTYPE)
        if a.own is not None:
            label, share = load_own(a, b, n, K, N, ignore_index)
        sums_so_far, sums, masses_so_far, masses = sums, (), masses, ()
        for i in tl.static_range(len(ks)):
            weights = weigh(a, at, b, n, ks[i], K, N, tile)  # [k, BN]
            if out is not None:
                # [BC, BN] @ [BN, k]
                sums += (dot(columns, tl.trans(operand(weights, tile)), sums_so_far[i], tile),)
            if mass is not None:
                masses += (masses_so_far[i] + tl.sum(weights, 1),)
            if grad.data is not None:
                if a.own is not None:
                    weights += tl.where(ks[i][:, None] == label[None, :], (at * share)[None, :], 0.0)
                # [BC, k] @ [k, BN]
                moved = dot(kept[i], operand(weights, tile), moved, tile)
        if grad.data is not None:
            store_tile(grad, b, c, n, C, N, make_gradient(moved, values, along, b, n, N))
        if out is None:
            sums = sums_so_far
        if mass is None:
            masses = masses_so_far
    if out is not None:
        for i in tl.static_range(len(ks)):
            store_sums(out, mass, part, chunk, c, ks[i], K, C, sums[i], masses[i])
    if lowest is not None:
        tl.store(lowest + part, tl.min(lowest_label, 0), mask=(chunk == 0) & (block == 0))


@triton.jit
def store_sums(out, mass, part, chunk, c, k, K, C, sums, masses):
    """One part's sums [c, k] and mass [k]."""
    p_out = out + tl.cast(part, tl.int64) * K * C + k.to(tl.int64)[None, :] * C + c[:, None]
    tl.store(p_out, sums, mask=(c < C)[:, None] & (k < K)[None, :])
    if mass is not None:
        tl.store(mass + tl.cast(part, tl.int64) * K + k, masses, mask=k < tl.where(chunk == 0, K, 0))


@triton.jit(do_not_specialize=VARYING)
def spread(x, rows, a, along, grad, ignore_index, N, tiles, chunks, tile):
    """T of BC channels at BN pixels, grad [B, C, N], block by block of K."""
    chunk, b, n = locate(chunks, tiles, tile.BN)
    c = chunk * tile.BC + tl.arange(0, tile.BC)
    at = load_pixels(a, b, n, rows.K, N, ignore_index, tile)
    if a.own is not None:
        label, share = load_own(a, b, n, rows.K, N, ignore_index)
    moved = tl.zeros((tile.BC, tile.BN), tile.ACC)
    for k0 in range(0, rows.K, tile.BK):
        ks = class_blocks(k0, tile)
        for i in tl.static_range(len(ks)):
            weights = weigh(a, at, b, n, ks[i], rows.K, N, tile)
            if a.own is not None:
                weights += tl.where(ks[i][:, None] == label[None, :], (at * share)[None, :], 0.0)
            # [BC, k] @ [k, BN]
            moved = dot(load_rows(rows, b, c, ks[i]), operand(weights, tile), moved, tile)
    values = moved
    if x.data is not None:
        values = load_tile(x, b, c, n, rows.C, N)
    store_tile(grad, b, c, n, rows.C, N, make_gradient(moved, values, along, b, n, N))


@triton.jit(do_not_specialize=VARYING)
def soft_gradient(x, rows, a, grad_mass, means, grad, N, tiles, blocks, pixels, tile, PASS: tl.constexpr):
    """M (m - sum_j M_j m_j) [B, K, N] with m = D x + d, in an "only" pass; if K has more blocks than one, a "first"
    leaves each block's share of the sum in means [blocks, B, N], and a "second" reads their total [B, N]."""
    block, b, n = locate(blocks, tiles, tile.BN)
    ks = class_blocks(block * tile.BK, tile)
    sums, _ = multiply(x, rows, b, n, N, ks, tile, False)
    at = load_pixels(a, b, n, rows.K, N, 0, tile)
    p_pixels = b.to(tl.int64) * N + n
    mean = tl.zeros((tile.BN,), tile.ACC)
    if PASS == "second":
        mean = tl.load(means + p_pixels, mask=n < N, other=0.0)
    moves = ()
    for i in tl.static_range(len(ks)):
        m = tl.trans(sums[i])  # [k, BN]
        m += tl.load(grad_mass + b.to(tl.int64) * rows.K + ks[i], mask=ks[i] < rows.K, other=0.0)[:, None]
        weights = weigh(a, at, b, n, ks[i], rows.K, N, tile)
        if PASS == "second":
            store_tile(grad, b, ks[i], n, rows.K, N, weights * (m - mean[None, :]))
        else:
            mean += tl.sum(weights * m, 0)
            moves += ((weights, m),)
    if PASS == "first":
        tl.store(means + tl.cast(block, tl.int64) * pixels + p_pixels, mean, mask=n < N)
    if PASS == "only":
        for i in tl.static_range(len(ks)):
            weights, m = moves[i]
            store_tile(grad, b, ks[i], n, rows.K, N, weights * (m - mean[None, :]))
