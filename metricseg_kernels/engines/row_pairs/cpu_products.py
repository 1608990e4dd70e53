"""Matrix products of row pairs on the CPU, by torch's library or by the register tiles of csrc/engines/row_pairs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...core.library import define_kernel, ops

define_kernel(
    "row_pairs_multiply_kernel(Tensor a, Tensor b, Tensor? b_steps, Tensor? b_columns, float sign, bool accumulate, "
    "Tensor(a!) out) -> ()"
)
define_kernel("row_pairs_mirror_kernel(Tensor(a!) s, int stripe) -> ()")
define_kernel("row_pairs_is_amd_avx512(Tensor on_cpu) -> bool")

STRIPE = 256  # rows of a product of a set with itself that are formed together
OWN_DIM = 64  # features per row from which our products can be faster than torch's, see use_own_products


@functools.cache
def library_is_avx2() -> bool:
    """Whether torch multiplies in narrower vectors than the processor has: MKL keeps to AVX2 on AMD."""
    return torch.backends.mkl.is_available() and ops.row_pairs_is_amd_avx512(torch.empty(0))


def use_own_products(dim: int) -> bool:
    """Whether the register tiles of csrc/engines/row_pairs replace torch's library, for rows of `dim` features.

    Measured with tiles of 1,024 x 1,024 on one core, times that of torch's library, S = X Y^T / W Y / W^T X in fp32:
    MKL kept to AVX2      1.2 / 0.9 / 0.8 at D = 32, 1.5 / 1.1 / 1.1 at 64, 1.5 / 1.5 / 1.5 at 256 (fp64: 1.4)
    MKL with AVX-512      0.9 / 0.7 / 0.9 at D = 64, 0.9 / 0.9 / 0.9 at 256
    our tiles in AVX2     0.9 / 0.8 / 0.7 at D = 64, 1.0 / 0.9 / 0.9 at 256, against MKL kept to AVX2
    Zen 4 (AVX-512 takes two cycles, MKL AVX2), both cores   1.06 / 0.93 / 1.0 at D = 256; a step of 1,024 to 4,096 rows
    of 256 features 1.02 to 1.1, of 2,048 rows of 64 features 1.1
    """
    return dim >= OWN_DIM and library_is_avx2()


def put_product(x: Tensor, y: Tensor, places: Tensor | None, out: Tensor) -> None:
    """out [A, M] = x y^T; of the rows y[places], with `use_own_products` only."""
    if use_own_products(x.shape[1]):
        ops.row_pairs_multiply_kernel(x, y.t(), None, places, 1.0, False, out)
    else:
        torch.mm(x, y.t(), out=out)


def put_square(x: Tensor, out: Tensor) -> None:
    """out [A, A] = x x^T: stripes of rows from the diagonal on, the rest is their mirror image."""
    for begin in range(0, len(x), STRIPE):
        put_product(x[begin : begin + STRIPE], x[begin:], None, out[begin : begin + STRIPE, begin:])
    if len(x) > STRIPE:
        ops.row_pairs_mirror_kernel(out, STRIPE)


def add_product(
    total: Tensor, weights: Tensor, rows: Tensor, places: Tensor | None, sign: int, fresh: bool = False
) -> None:
    """total += sign weights rows[places]; fresh, with sign 1: total counts as 0, whatever it holds."""
    if use_own_products(rows.shape[1]):
        ops.row_pairs_multiply_kernel(weights, rows, places, None, float(sign), not fresh, total)
    else:
        torch.addmm(total, weights, rows, beta=0 if fresh else 1, alpha=sign, out=total)
