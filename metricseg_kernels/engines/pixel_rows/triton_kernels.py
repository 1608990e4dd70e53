"""Products of the pixels of feature maps with a few rows w_k [C], in Triton. Maps [B, C, h, w] are read in place.

  P = X W^T    [N, K]   a program owns BN pixels and walks over C, chunk by chunk: `multiply`
  S = X A      [C, K]   a program owns BC channels and walks over pixels
  T = W^T A    [C, N]   beside S in that walk, or for BN pixels alone in a walk over K
P goes to an epilogue before it is stored; an op makes tiles of A [k, BN] in registers. Padding in K, C and N is 0.
Operand layouts, bytes and limits: docs/kernels/centers.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import round_to_tf32

# Kernel arguments that depend on the size of a batch or the settings of a call: no specialization for their values.
# N and the strides are specialized: if 16 divides them, loads and stores are as wide as possible.
VARYING = ["tiles", "group_tiles", "parts", "chunks", "blocks", "pixels", "ignore_index"]


@triton.jit
def locate(inner, tiles, BN: tl.constexpr):
    """This program's index among those of a tile, its image, and its pixels [BN]."""
    t = tl.program_id(0) // inner
    return tl.program_id(0) % inner, t // tiles, t % tiles * BN + tl.arange(0, BN)


@triton.jit
def pixel_offsets(map, n):
    """Offsets of pixels n of an image; `map` has one stride for them if its rows follow each other in memory."""
    if map.y is None:
        return n.to(tl.int64) * map.x
    else:
        return (n // map.width).to(tl.int64) * map.y + (n % map.width).to(tl.int64) * map.x


@triton.jit
def pointers(map, b, c, n):
    """Pointers [c, n] to channels c [c] and pixels n [n] of image b."""
    p_image = map.data + tl.cast(b, tl.int64) * map.b
    return p_image + c.to(tl.int64)[:, None] * map.c + pixel_offsets(map, n)[None, :]


@triton.jit
def load_tile(map, b, c, n, C, N):
    """[c, n], 0 beyond C and N."""
    return tl.load(pointers(map, b, c, n), mask=(c < C)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def load_labels(map, b, n, K, N, ignore_index):
    """The classes of pixels n [n]; -1 for none."""
    p_labels = map.data + tl.cast(b, tl.int64) * map.b + pixel_offsets(map, n)
    label = tl.load(p_labels, mask=n < N, other=0).to(tl.int64)
    known = (n < N) & (label != ignore_index) & (label >= 0) & (label < K)
    return tl.where(known, label, -1).to(tl.int32)


@triton.jit
def load_classes(map, b, n, K, N, ignore_index):
    """The classes of pixels n [n]; -1 for none, -2 for a label out of range."""
    p_labels = map.data + tl.cast(b, tl.int64) * map.b + pixel_offsets(map, n)
    label = tl.load(p_labels, mask=n < N, other=0).to(tl.int64)
    found = tl.where((label >= 0) & (label < K), label, -2)
    return tl.where((n < N) & (label != ignore_index), found, -1).to(tl.int32)


@triton.jit
def load_rows(rows, b, c, k):
    """W^T of image b, [c, k], 0 beyond C and K."""
    p_rows = rows.data + tl.cast(b, tl.int64) * rows.b
    p_rows += k.to(tl.int64)[None, :] * rows.k + c.to(tl.int64)[:, None] * rows.c
    return tl.load(p_rows, mask=(c < rows.C)[:, None] & (k < rows.K)[None, :], other=0.0)


@triton.jit
def class_blocks(k0, tile):
    """Rows of W from k0 on, one [k] for each block."""
    ks = ()
    for i in tl.static_range(len(tile.KS)):
        ks += (k0 + tl.arange(0, tile.KS[i]),)
        k0 += tile.KS[i]
    return ks


@triton.jit
def zero_blocks(rows: tl.constexpr, tile):
    """[rows, k] for each block."""
    zeros = ()
    for i in tl.static_range(len(tile.KS)):
        zeros += (tl.zeros((rows, tile.KS[i]), tile.ACC),)
    return zeros


@triton.jit
def operand(values, tile):
    """Values as the operand of a product."""
    if tile.PRECISION == "tf32":
        return round_to_tf32(values.to(tl.float32))
    else:
        return values.to(tile.DTYPE)


@triton.jit
def dot(a, b, sums, tile):
    return tl.dot(a, b, sums, input_precision=tile.PRECISION, out_dtype=tile.ACC)


@triton.jit
def multiply(x, rows, b, n, N, ks, tile, SQUARES: tl.constexpr):
    """(<x_n, w_k> [BN, k] for each block, |x_n|^2 [BN] with SQUARES)."""
    c = tl.arange(0, tile.BC)
    sums = zero_blocks(tile.BN, tile)
    squares = tl.zeros((tile.BC, tile.BN), tile.ACC)
    for c0 in range(0, rows.C, tile.BC):
        values = load_tile(x, b, c0 + c, n, rows.C, N)  # [BC, BN]
        if SQUARES:
            wide = values.to(tile.ACC)
            squares += wide * wide
        columns = tl.trans(values.to(tile.DTYPE) if x.channels_last else operand(values, tile))
        added = ()
        for i in tl.static_range(len(ks)):
            # [BN, BC] @ [BC, k]
            added += (dot(columns, load_rows(rows, b, c0 + c, ks[i]), sums[i], tile),)
        sums = added
    return sums, tl.sum(squares, 0)
