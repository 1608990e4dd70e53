"""What users of the contrast family launch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import Call

# name: (form, A, D, dtype, torch.set_float32_matmul_precision)
CALLS = {
    "contrast": ("negatives", 32768, 256, "bfloat16", "highest"),
    "contrast-all-tf32": ("all", 262144, 64, "float32", "high"),
    "contrast-margin": ("margin", 262144, 64, "bfloat16", "highest"),
    "contrast-margin-fp32": ("margin", 32768, 256, "float32", "highest"),
}


def calls() -> Iterator[Call]:
    for name, (form, rows, depth, dtype, precision) in CALLS.items():
        exact = dtype == "float32" and precision == "highest"
        yield Call(name, partial(launch, form, rows, depth, dtype), precision, tensor_cores=not exact)


def launch(form_name: str, rows: int, depth: int, dtype_name: str) -> None:
    from metricseg_kernels.contrast import triton as contrast
    from metricseg_kernels.contrast.op import COEFFICIENTS, STATS, Form
    from metricseg_kernels.pairwise.rows import Rows

    features = torch.zeros((rows, depth), dtype=getattr(torch, dtype_name))
    x = Rows(features, torch.arange(rows), torch.zeros(rows, dtype=torch.int32), None)
    form = Form(form_name, 0.1, 1.0, 1.0, 0.0, 2)
    contrast.contrast_stats_kernel(x, None, form, torch.zeros((rows, STATS)))
    contrast.contrast_grad_kernel(x, None, form, torch.zeros((rows, COEFFICIENTS)), torch.zeros_like(features), None)
