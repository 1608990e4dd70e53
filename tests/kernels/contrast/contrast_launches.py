"""Launches of users of the contrast family: any two values of two axes occur together in one of the calls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from launches import ARITHMETIC, Call, pairs

from metricseg_kernels.contrast import forms

FORMS = {"negatives": forms.Negatives(0.1, 1.0), "all": forms.All(0.1, 1.0), "margin": forms.Margin(1.0, 0.2, 2, 0),
         "hinge": forms.Margin(1.0, 0.2, 1, 1), "nca": forms.Nca(0.1)}  # fmt: skip
AXES = {
    "depth": (256, 64, 128, 512, 96, 32),
    "dtype": tuple(ARITHMETIC),
    "form": tuple(FORMS),
    "sets": ("one", "two"),
    "wanted": ("both", "anchors"),
    "ids": (False, True),
}
# depth, dtype, form, sets
WEIGHTED = ((256, "bf16", "negatives", "one"), (64, "fp16", "all", "one"), (128, "tf32", "negatives", "one"),
            (256, "fp32", "all", "one"), (64, "fp64", "negatives", "one"), (256, "tf32", "all", "two"),
            (512, "bf16", "negatives", "two"), (96, "fp32", "negatives", "two"))  # fmt: skip
ROWS, BANK = 4096, 190_000  # few anchors against a bank are walked in parts


def calls() -> Iterator[Call]:
    for choice in pairs(AXES):
        yield make_call(**choice)
    yield make_call(64, "bf16", "negatives", "one", rows=262_144)  # walked whole
    yield make_call(64, "tf32", "all", "one", rows=262_144)
    yield make_call(256, "bf16", "negatives", "two", wanted="contrast", rows=1024, columns=BANK)
    yield make_call(256, "bf16", "margin", "one", rows=32_768)
    yield make_call(130, "bf16", "negatives", "one", strided=True)
    for form in FORMS:  # so few that one program adds up the terms
        yield make_call(256, "fp32", form, "one", rows=1024)
    for dtype in ("fp64", "tf32", "bf16"):
        yield make_call(256, dtype, "negatives", "one", rows=1024, weighted=True)
    yield make_call(256, "bf16", "negatives", "two", rows=1024, wanted="anchors")
    for depth, dtype, form, sets in WEIGHTED:
        yield make_call(depth, dtype, form, sets, ids=form == "all", weighted=True)
    for dtypes in (
        (torch.uint8,), (torch.int32, torch.int64), (torch.uint8, torch.uint8), (torch.uint8, torch.int32),
        (torch.int64,),
    ):  # fmt: skip
        for acc in (torch.float32, torch.float64):
            names = "-".join(str(dtype).removeprefix("torch.") for dtype in (*dtypes, acc))
            yield Call(f"sort-{names}", partial(launch_sort, dtypes, acc))
            if acc == torch.float32:
                yield Call(f"sets-{names}", partial(launch_sets, *dtypes, *dtypes[:1] * (2 - len(dtypes))))
            yield Call(f"mean-{names}", partial(launch_mean, acc, len(dtypes)))


def launch_sort(dtypes: tuple[torch.dtype, ...], acc: torch.dtype) -> None:
    from metricseg_kernels.contrast import triton as contrast
    from metricseg_kernels.engines.row_pairs.rows import Labeled, Sorted

    sides = [Labeled(torch.empty(ROWS, dtype=d, device="meta"), None) for d in dtypes]
    out = [Sorted(*(torch.empty(ROWS, dtype=d, device="meta") for d in (torch.int64, torch.int32)), None)] * len(sides)
    contrast.sort_rows_kernel(sides, 255, out)
    numbers = torch.empty(ROWS, dtype=acc, device="meta")
    sides = [side._replace(ids=side.labels) for side in sides]
    out = [rows._replace(ids=rows.groups) for rows in out]
    sides[-1], out[-1] = sides[-1]._replace(weights=numbers), out[-1]._replace(weights=numbers)
    sides[0], out[0] = sides[0]._replace(factors=numbers), out[0]._replace(factors=numbers)
    contrast.sort_rows_kernel(sides, 255, out)


def launch_sets(label: torch.dtype, segment: torch.dtype) -> None:
    from metricseg_kernels.contrast import triton as contrast

    pixels, prototypes = (
        [torch.empty(n, dtype=d, device="meta") for d in (label, torch.int32, torch.int64)] for n in (ROWS, 300)
    )
    contrast.prototype_sets_kernel(
        pixels[0], pixels[0].to(segment), prototypes[0], 255, pixels[1], prototypes[1], pixels[2], prototypes[2]
    )


def launch_mean(acc: torch.dtype, sums: int) -> None:
    from metricseg_kernels.contrast import triton as contrast

    terms, counts = torch.empty(sums, dtype=acc, device="meta"), torch.empty((ROWS, sums), dtype=acc, device="meta")
    for weights in (None, counts[:, 0].contiguous()):
        out = (terms[0], terms.double(), terms)
        contrast.contrast_mean_kernel(terms, counts, weights, weights is not None or sums == 1, *out)


def make_call(depth: int, dtype: str, form: str, sets: str, wanted: str = "both", ids: bool = False, rows: int = ROWS,
              columns: int = 2 * ROWS, strided: bool = False, weighted: bool = False) -> Call:  # fmt: skip
    storage, precision, tensor_cores, may_spill = ARITHMETIC[dtype]
    run = partial(
        launch, depth, storage, form, rows, columns if sets == "two" else None, wanted, ids, strided, weighted
    )
    name = f"{form}-{depth}-{dtype}-{sets}-{wanted}-{rows}" + "-ids" * ids + "-strided" * strided
    name += "-weighted" * weighted
    return Call(name, run, precision, may_spill, tensor_cores)


def launch(
    depth: int, dtype: torch.dtype, form: str, rows: int, columns: int | None, wanted: str, ids: bool, strided: bool,
    weighted: bool = False,
) -> None:  # fmt: skip
    from metricseg_kernels.contrast import triton as contrast
    from metricseg_kernels.engines.row_pairs.rows import Rows

    def side(count: int) -> Rows:
        features = torch.empty((count * (1 + strided), depth), dtype=dtype, device="meta")[:: 1 + strided]
        groups = torch.empty(count, dtype=torch.int32, device="meta")
        return Rows(features, torch.empty(count, dtype=torch.int64, device="meta"), groups, groups if ids else None)

    x, y = side(rows), None if columns is None else side(columns)
    chosen = FORMS[form]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    if weighted:
        weights = torch.empty(rows if y is None else y.groups.shape[0], dtype=acc, device="meta")
        x, y = (x._replace(weights=weights), None) if y is None else (x, y._replace(weights=weights))
    stats = torch.empty((rows, len(chosen.Stats._fields)), dtype=acc, device="meta")
    total, each = (torch.empty((*size, chosen.sums), dtype=acc, device="meta") for size in ((), (rows,)))
    contrast.contrast_fwd_kernel(x, y, chosen, True, total, each, stats, None, None)
    gradients = [torch.empty(s.features.shape, dtype=dtype, device="meta") for s in (x, y) if s is not None]
    grad_x, grad_y = (*gradients, None)[:2]
    contrast.contrast_bwd_kernel(
        total, stats, x, y, chosen, None if wanted == "contrast" else grad_x, None if wanted == "anchors" else grad_y
    )
