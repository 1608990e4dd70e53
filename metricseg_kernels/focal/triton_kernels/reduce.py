"""Small reductions of the focal family in Triton: the totals of a walk, and the order statistic of OHEM.

`sum_totals`: one program adds the rows [programs, 8] float64 of a walk, in their order.
`select_digit`: radix selection, 8 bits a pass, one histogram per program and integer atomics, so the same bits every
time. Values are read once a pass: 4 times for fp32, 8 times for fp64. `count_digits`, `select_among`: the same of few
values in two launches, without atomics. Derivation: docs/kernels/focal.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import divide
from ...engines.resized.triton_kernels.sums import add_rows


@triton.jit
def no_totals(P: tl.constexpr):
    """Per lane: loss, valid, weight, correct, out of range, the largest label out of range."""
    zero, count = tl.zeros((P,), tl.float64), tl.zeros((P,), tl.int32)
    return zero, count, zero, count, count, tl.full((P,), float("-inf"), tl.float64)


@triton.jit
def add_totals(totals, value, valid, w_t, correct, bad, raw):
    """Add one label row, whose masks hold only pixels that this program counts."""
    return (
        totals[0] + value.to(tl.float64),
        totals[1] + valid.to(tl.int32),
        totals[2] + tl.where(valid, w_t, 0.0).to(tl.float64),
        totals[3] + correct.to(tl.int32),
        totals[4] + bad.to(tl.int32),
        tl.maximum(totals[5], tl.where(bad, raw.to(tl.float64), float("-inf"))),
    )


@triton.jit
def store_totals(p_row, totals):
    for i in tl.static_range(5):
        tl.store(p_row + i, tl.sum(totals[i]).to(tl.float64))
    tl.store(p_row + 5, tl.max(totals[5]))


@triton.jit(do_not_specialize=["programs"])
def sum_totals(partials, programs: tl.int64, loss, divisor, totals, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """loss [] and totals [5]; loss and divisor [] may be absent. COUNT: of the column that the loss is divided by."""
    slot = tl.arange(0, 8)
    # [8]: loss, valid, weight, correct, out of range, the largest
    total, largest = add_rows(partials, programs, 8, slot, slot < 6, BLOCK)
    example = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(totals + slot - 1, tl.where(slot == 5, example, total), mask=(slot >= 1) & (slot <= 5))
    if loss is not None:
        value = total.to(loss.dtype.element_ty)
        if divisor is not None:
            count = tl.sum(tl.where(slot == COUNT, total, 0.0), 0)
            count = tl.where(count > 0, count, 1.0).to(loss.dtype.element_ty)
            tl.store(divisor, count)
            value = divide(value, count + tl.zeros_like(value))
        tl.store(loss + slot, value, mask=slot == 0)


@triton.jit
def ordered_key(value, UINT: tl.constexpr, BITS: tl.constexpr):
    """Unsigned integers in the order of the values, NaN last."""
    bits = value.to(UINT, bitcast=True)
    sign = tl.full(bits.shape, 1 << (BITS - 1), UINT)
    ones = tl.full(bits.shape, (1 << BITS) - 1, UINT)  # bits ^ ones: `~` of unsigned fails in Triton 3.8's interpreter
    return tl.where(value == value, bits ^ tl.where(bits >= sign, ones, sign), ones)


@triton.jit
def digit_of(count, rank):
    """(digit, rank within it) of the rank-th largest counted from 0, from the counts of all digits."""
    digit = tl.arange(0, count.shape[0])
    above = tl.sum(count) - tl.cumsum(count, 0)  # how many have a larger digit
    here = (above <= rank) & (rank < above + count)
    return tl.sum(tl.where(here, digit, 0)), rank - tl.sum(tl.where(here, above, 0))


@triton.jit
def choose_digit(histogram, rank):
    return digit_of(tl.load(histogram + tl.arange(0, 256)), rank)


@triton.jit
def store_value(result, key, most, UINT: tl.constexpr, BITS: tl.constexpr):
    """The value of a key [1], or `most` if that is smaller; NaN stays."""
    sign = tl.full((1,), 1 << (BITS - 1), UINT)
    bits = key ^ tl.where(key >= sign, sign, tl.full((1,), (1 << BITS) - 1, UINT))
    value = bits.to(result.dtype.element_ty, bitcast=True)
    most = tl.full((1,), most, value.dtype)
    tl.store(result + tl.arange(0, 1), tl.where(value > most, most, value))


@triton.jit(do_not_specialize=["size", "rank", "most", "step"])
def select_digit(values, size: tl.int64, rank: tl.int64, most: tl.float64, step: tl.int32, histograms, result,
                 UINT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Pass `step` of BITS / 8; the one after the last writes the result. VECTOR divides size: loads are that wide."""
    rank = tl.cast(rank, tl.int64)  # of one type, as it is carried through the loop
    prefix = tl.zeros((1,), UINT)
    for i in range(0, step):
        digit, rank = choose_digit(histograms + i * 256, rank)
        prefix = (prefix << 8) | digit.to(UINT)
    if step * 8 == BITS:
        store_value(result, prefix, most, UINT, BITS)
    else:
        counts = tl.zeros((256,), tl.int64)
        for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            n = begin + tl.arange(0, BLOCK)
            known = n // VECTOR < size // VECTOR
            key = ordered_key(tl.load(values + n, mask=known, other=0.0), UINT, BITS)
            digits = key >> (BITS - 8 - 8 * step).to(UINT)  # those chosen by earlier passes, and this one's
            counts += tl.histogram((digits & 255).to(tl.int32), 256, mask=known & (digits >> 8 == prefix))
        tl.atomic_add(histograms + step * 256 + tl.arange(0, 256), counts, mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["size"])
def count_digits(values, size: tl.int32, counts, UINT: tl.constexpr, BITS: tl.constexpr, FIRST: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """counts [programs, 2^FIRST]: the first digits, of FIRST bits, of the keys of a block of values."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = n < size
    digit = ordered_key(tl.load(values + n, mask=known, other=0.0), UINT, BITS) >> (BITS - FIRST)
    BINS: tl.constexpr = 1 << FIRST
    bins = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * BINS + bins, tl.histogram(digit.to(tl.int32), BINS, mask=known))


@triton.jit(do_not_specialize=["size", "rank", "most", "programs"])
def select_among(values, size: tl.int32, rank: tl.int32, most: tl.float64, counts, programs: tl.int32, kept, result,
                 UINT: tl.constexpr, BITS: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One program: the first digit of the result, the keys that begin with it (kept [size]), a bisection of these."""
    BINS: tl.constexpr = 1 << FIRST
    REST: tl.constexpr = BITS - FIRST
    bins = tl.arange(0, BINS)
    count = tl.zeros((BINS,), tl.int32)
    for i in range(0, programs):
        count += tl.load(counts + i * BINS + bins)
    digit, rank = digit_of(count, rank)
    i = tl.arange(0, BLOCK)
    here = tl.full((), 0, tl.int32)
    for begin in range(0, size, BLOCK):
        known = begin + i < size
        key = ordered_key(tl.load(values + begin + i, mask=known, other=0.0), UINT, BITS)
        hit = (known & ((key >> REST).to(tl.int32) == digit)).to(tl.int32)
        tl.store(kept + here + tl.cumsum(hit, 0) - 1, key.to(kept.dtype.element_ty, bitcast=True), mask=hit > 0)
        here += tl.sum(hit, 0)
    tl.debug_barrier()  # keys are read by other threads
    # the largest number that more than `rank` keys reach
    found = tl.full((1,), 0, UINT) + (digit.to(UINT) << REST)
    bit = tl.full((1,), 1 << (REST - 1), UINT)
    for _ in range(REST):
        higher = found | bit
        bit = bit >> 1
        reach = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, here, BLOCK):
            key = tl.load(kept + begin + i, mask=begin + i < here, other=0).to(UINT, bitcast=True)
            reach += ((begin + i < here) & (key >= higher)).to(tl.int32)
        found = tl.where(tl.sum(reach, 0) > rank, higher, found)
    store_value(result, found, most, UINT, BITS)
