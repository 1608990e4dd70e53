"""Kernels of the retrieval family. Order, tiles and limits: docs/kernels/retrieval.md.

`part_topk`: BM queries against a part of the bank, BN rows at a time; the k best stay in registers, and products never
reach memory. `merge`: the sorted lists of all parts of BM queries into one.
"""

import triton
import triton.language as tl

VARYING = ["Q", "M", "k", "parts", "part_tiles"]


@triton.jit
def load_transposed(rows, r, d, R, D, ACC: tl.constexpr):
    """[d, r], 0 beyond D and R."""
    p = rows.data + r.to(tl.int64)[None, :] * rows.row + d.to(tl.int64)[:, None] * rows.column
    return tl.load(p, mask=(r < R)[None, :] & (d < D)[:, None], other=0.0).to(ACC)


@triton.jit(do_not_specialize=VARYING)
def part_topk(queries, bank, valid, valid_step, values, indices, Q, M, D, k, parts, part_tiles, BM: tl.constexpr,
              BN: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """values and indices [parts, Q, k] of one part: by value, then by index; -inf and -1 if there are fewer."""
    part, q = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64) * BM + tl.arange(0, BM)
    d, slots = tl.arange(0, BD), tl.arange(0, BK)
    base = part.to(tl.int64) * part_tiles * BN
    # Rows are counted within the part. Empty slots differ, so that one can be named. Slots beyond k are never the least
    kept = tl.zeros((BM, BK), ACC) + tl.where(slots < k, float("-inf"), float("inf"))[None, :]
    kept_row = tl.zeros((BM, BK), tl.int32) + (part_tiles * BN + slots)[None, :]
    for t in range(0, part_tiles):
        row = t * BN + tl.arange(0, BN)
        m = base + row
        s = tl.zeros((BM, BN), ACC)
        for d0 in range(0, D, BD):
            # [BM, BD] @ [BD, BN]
            rows = tl.trans(load_transposed(queries, q, d0 + d, Q, D, ACC))
            columns = load_transposed(bank, m, d0 + d, M, D, ACC)
            s = tl.dot(rows, columns, s, input_precision="ieee", out_dtype=ACC)
        some = m < M
        if valid is not None:
            some = some & (tl.load(valid + m * valid_step, mask=m < M, other=0) != 0)
        s = tl.where((q < Q)[:, None] & some[None, :] & (s == s), s, float("-inf"))
        least, top = tl.min(kept, 1), tl.max(s, 1)
        # one row of the bank for each query; of equal values the first, as a later one must be larger than the least
        while tl.max((top > least).to(tl.int32), 0) > 0:
            at = tl.min(tl.where(s == top[:, None], row[None, :], 2147483647), 1)
            last = tl.max(tl.where(kept == least[:, None], kept_row, -1), 1)
            slot = (kept == least[:, None]) & (kept_row == last[:, None]) & (top > least)[:, None]
            kept = tl.where(slot, top[:, None], kept)
            kept_row = tl.where(slot, at[:, None], kept_row)
            s = tl.where(row[None, :] == at[:, None], float("-inf"), s)
            least, top = tl.min(kept, 1), tl.max(s, 1)
    kept = tl.where((slots < k)[None, :], kept, float("-inf"))
    p_out = (part.to(tl.int64) * Q + q) * k
    for i in range(0, k):
        top = tl.max(kept, 1)
        at = tl.min(tl.where(kept == top[:, None], kept_row, 2147483647), 1)
        tl.store(values + p_out + i, top, mask=q < Q)
        tl.store(indices + p_out + i, tl.where(top > float("-inf"), base + at, -1), mask=q < Q)
        kept = tl.where(kept_row == at[:, None], float("-inf"), kept)


@triton.jit(do_not_specialize=VARYING)
def merge(part_values, part_indices, values, indices, Q, k, parts, BM: tl.constexpr, BP: tl.constexpr):
    """values and indices [Q, k] from the sorted lists [parts, Q, k] of at most BP parts. A part with a lower number has
    lower indices."""
    q = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    part = tl.arange(0, BP)
    p_lists = (part.to(tl.int64)[None, :] * Q + q[:, None]) * k  # [BM, BP]
    mask = (q < Q)[:, None] & (part < parts)[None, :]
    head = tl.zeros((BM, BP), tl.int32)
    value = tl.load(part_values + p_lists, mask=mask, other=float("-inf"))
    for i in range(0, k):
        top = tl.max(value, 1)
        first = tl.min(tl.where(value == top[:, None], part[None, :], BP), 1)
        taken = part[None, :] == first[:, None]
        at = tl.load(part_indices + p_lists + head, mask=mask & taken, other=-1)
        tl.store(values + q * k + i, top, mask=q < Q)
        tl.store(indices + q * k + i, tl.max(at, 1), mask=q < Q)
        head += taken.to(tl.int32)
        following = tl.load(part_values + p_lists + head, mask=mask & taken & (head < k), other=float("-inf"))
        value = tl.where(taken, following, value)
