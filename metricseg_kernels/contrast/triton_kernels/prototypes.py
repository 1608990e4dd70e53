"""Labels and ids of pixels and prototypes, by comparison of each with all prototypes: O((N + P) P)."""

import triton
import triton.language as tl


@triton.jit
def compare(label, prototypes, count, ignore_index, KEY: tl.constexpr, CHUNK: tl.constexpr):
    """(how many prototypes have a smaller label, how many have this one, how many of those take part) [BLOCK]."""
    smaller = tl.zeros((label.shape[0], CHUNK), tl.int32)
    equal, alike = smaller, smaller
    for begin in range(0, count, CHUNK):
        j = begin + tl.arange(0, CHUNK)
        known = (j < count)[None, :]
        other = tl.load(prototypes + j, mask=j < count, other=0)
        alive = ((other.to(tl.int64) != ignore_index) & (other.to(KEY) >= 0))[None, :]
        other = other.to(KEY)[None, :]
        same = known & (other == label[:, None])
        smaller += (known & (other < label[:, None])).to(tl.int32)
        equal += same.to(tl.int32)
        alike += (same & alive).to(tl.int32)
    return tl.sum(smaller, 1), tl.sum(equal, 1), tl.sum(alike, 1)


@triton.jit(do_not_specialize=["pixels", "count", "ignore_index"])
def prototype_sets(labels, segments, prototypes, x, y, ids, places, pixels, count, ignore_index: tl.int64,
                   KEY: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """See `op.prototype_sets`. A label's rank is odd if a prototype has it, so that no other label shares it."""
    blocks = tl.cdiv(pixels, BLOCK)
    block = tl.program_id(0)
    if block < blocks:
        i = block * BLOCK + tl.arange(0, BLOCK)
        raw = tl.load(labels + i, mask=i < pixels, other=0)
        segment = tl.load(segments + i, mask=i < pixels, other=-1).to(tl.int64)
        absent = (raw.to(tl.int64) == ignore_index) | (segment < 0)
        label = raw.to(KEY)
        smaller, equal, alike = compare(label, prototypes, count, ignore_index, KEY, CHUNK)
        tl.store(x + i, tl.where(absent, -1, 2 * smaller + (equal > 0).to(tl.int32)), mask=i < pixels)
        # its own prototype is left out if another has its label
        inside = (segment >= 0) & (segment < count)
        own = tl.load(prototypes + segment, mask=inside, other=0)
        alive = inside & (own.to(tl.int64) != ignore_index) & (own.to(KEY) >= 0)
        others = alike - (alive & (own.to(KEY) == label)).to(tl.int32)
        tl.store(ids + i, tl.where(others > 0, segment, -1), mask=i < pixels)
    else:
        j = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
        other = tl.load(prototypes + j, mask=j < count, other=0)
        alive = (other.to(tl.int64) != ignore_index) & (other.to(KEY) >= 0)
        smaller, _, _ = compare(other.to(KEY), prototypes, count, ignore_index, KEY, CHUNK)
        tl.store(y + j, tl.where(alive, 2 * smaller + 1, -1), mask=j < count)
        tl.store(places + j, j.to(tl.int64), mask=j < count)
