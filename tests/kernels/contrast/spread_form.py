"""A form on the engine for pairs of rows: reference, cpu and triton in under 80 lines beside imports, see test_own_form.py.

"spread": l_i = LSE over negatives of <x_i, y_j> / temperature, the log of Wang and Isola's uniformity (ICML 2020).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from metricseg_kernels.contrast import cpu
from metricseg_kernels.contrast.reference import Pairs, masked_logsumexp, product
from metricseg_kernels.contrast.triton_kernels import softmax
from metricseg_kernels.contrast.triton_kernels.softmax import join_parts, log_of_sum
from metricseg_kernels.core.triton_kernels import in_base, power_of_base
from metricseg_kernels.engines.row_pairs.form import Form
from metricseg_kernels.engines.row_pairs.rows import Rows
from metricseg_kernels.engines.row_pairs.triton import Epilogue, Gradient, Phase, RowForm
from metricseg_kernels.engines.row_pairs.triton_kernels.tiles import pair_masks


class Stats(NamedTuple):
    row_max: Any
    lse: Any


class Coefs(NamedTuple):
    step: Any
    row_max: Any
    lse: Any


@dataclass(frozen=True)
class Spread(Form):
    name, Stats, Coefs, absent = "spread", Stats, Coefs, (-torch.inf, -torch.inf)
    temperature: float

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        row_max, lse = stats.unbind(1)
        live = ~torch.isneginf(lse)
        return torch.where(live, row_max / self.temperature + lse, 0.0)[:, None], live.to(stats.dtype)[:, None]

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        live = ~torch.isneginf(stats[:, 1:])
        step = torch.where(live, grad_terms.expand(len(stats), 1).to(stats.dtype) / self.temperature, 0.0)
        return torch.cat([step, torch.where(live, stats, stats.new_tensor([torch.inf, 0.0]))], 1)


def spread(x: Tensor, y: Tensor | None, which: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    lse, some = masked_logsumexp(product(x, (x if y is None else y).T) / temperature, which.negative)
    return torch.where(some, lse, 0.0), some


class OnCpu(cpu.Contrast):
    @staticmethod
    def kernel(s, phase, constants, x_groups, y_groups, x_ids, y_ids, x_w, y_w, x_coefs, y_coefs, x_out, y_out):
        negative = (x_groups >= 0)[:, None] & (y_groups >= 0) & (x_groups[:, None] != y_groups)
        if phase == "spread rows":
            row_max = torch.where(negative, s, -torch.inf).amax(1, keepdim=True)
            exps = torch.where(negative, ((s - row_max) / constants[0]).exp(), 0.0)
            x_out.copy_(torch.cat([row_max, exps.sum(1, keepdim=True).log()], 1))
        else:
            step, row_max, lse = x_coefs.split(1, 1)
            s.copy_(torch.where(negative, step * ((s - row_max) / constants[0] - lse).exp(), 0.0))


@triton.jit
def load(earlier, parts, programs, last, last_parts, r, padded, numbers, kind):
    row_max, exps = join_parts(last, last_parts, 2, padded, r, numbers)
    return Stats(row_max, log_of_sum(exps))


@triton.jit
def terms(row, numbers):
    live = row.lse != float("-inf")
    return (tl.where(live, row.row_max * numbers.constants[0] + row.lse, 0.0),), (live.to(row.lse.dtype),)


@triton.jit
def coefs(fields, grads, numbers):
    row = Stats(*fields)
    live = row.lse != float("-inf")
    step = tl.where(live, grads[0] * numbers.constants[0], 0.0)
    return Coefs(step, tl.where(live, row.row_max, float("inf")), tl.where(live, row.lse, 0.0))


@triton.jit
def largest(fields, coefs, heaviest):
    return tl.abs(coefs.step)


@triton.jit
def weights(s, pairs, sides):
    scale = in_base(pairs.numbers.constants[0])
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        c = Coefs(*sides[i])
        w += c.step * power_of_base((s - c.row_max) * scale - in_base(c.lse))
    if pairs.MASKED:
        w = tl.where(pair_masks(pairs)[1], w, 0.0)
    return w


class OnTriton(Epilogue):
    phases = (Phase(softmax.LseState, softmax.start_lse, softmax.add_lse, positives=False, twin=True),)
    gradient, rows = Gradient(weights), RowForm(len(Coefs._fields), load, terms, coefs, largest)

    def __init__(self, x: Rows, y: Rows | None, form: Spread, second_product: bool) -> None:
        scale = 1 / form.temperature
        super().__init__(x, y, form, second_product, (scale,), softmax.Constants(False), scale)
