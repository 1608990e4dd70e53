"""Compilations of the focal family's Triton kernels: what causes one, and what the table of launches covers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import launches
import pytest
import torch
from focal_launches import LAUNCHES, Launch

from benchmarks.harness.memory import FreshProcesses

# Image sizes of one ratio and with the same tile constants: they have as many lanes to a program.
CELLS = [(128, 256), (33, 62), (96, 120), (17, 31), (1, 93), (64, 217)]


def launch_all() -> None:
    from metricseg_kernels.focal import triton as focal

    for (h, w), gamma, ignore_index in itertools.product(CELLS, (2.5, 1.5, 0.5), (255, -100)):
        input = torch.empty((2, 19, h, w), device="meta")
        target = torch.empty((2, 4 * h, 4 * w), dtype=torch.int32, device="meta")
        loss, totals = torch.empty((), device="meta"), torch.empty(5, dtype=torch.float64, device="meta")
        grad, smoothing, alpha = torch.empty_like(input), 0.1 * gamma, 0.1 * gamma
        options = (None, None, None, gamma, smoothing, ignore_index, False, 0.0, False)
        focal.focal_kernel(input, target, *options, loss, totals, None, None, grad)
        focal.sigmoid_focal_kernel(input, target, None, gamma, alpha, ignore_index, False, loss, totals, grad)
        focal.kth_largest_kernel(torch.empty(target.shape, device="meta"), h * w, gamma, loss)


def test_numbers_of_a_call_cause_no_compilation(fresh_processes: FreshProcesses) -> None:
    """Sizes, gamma, label smoothing, alpha, ignore_index and k are run-time arguments."""
    once = ("count_digits", "select_among", "select_digit", "sum_totals")
    assert launches.compiled_by(fresh_processes, launch_all) == {**dict.fromkeys(once, 1), "walk": 2}


RATIOS = ("x1", "x4", "x32", "x40", "down", "corners")
DTYPES = ("float64", "float32", "bfloat16", "float16")
COMMON = {"dtype": DTYPES, "ratio": RATIOS, "mode": ("fused", "sum", "map", "backward"), "gamma": (0.0, 1.0, 2.0, 0.7)}
LABELS = ("uint8", "int32", "int64")


def value(launch: Launch, field: str) -> object:
    return getattr(launch, field) if field in Launch._fields else field in launch.flags


@pytest.mark.parametrize("ops, fields", [
    (("softmax",), {**COMMON, "classes": (2, 19, 150, 847), "labels": LABELS, "weight": (False, True),
                    "smoothing": (False, True), "argmax": (False, True), "ohem": (False, True)}),
    (("sigmoid", "dense"), {**COMMON, "op": ("sigmoid", "dense"), "classes": (2, 19, 150), "no_alpha": (False, True)}),
], ids=["softmax", "sigmoid"])  # fmt: skip
def test_every_pair_of_values_is_launched(ops: tuple[str, ...], fields: dict[str, Iterable[object]]) -> None:
    rows = [launch for launch in map(Launch.parse, LAUNCHES.split()) if launch.op in ops]
    for (a, x), (b, y) in itertools.combinations(((f, v) for f, values in fields.items() for v in values), 2):
        possible = a != b and {(a, x), (b, y)} != {("mode", "backward"), ("argmax", True)}
        assert not possible or any(value(row, a) == x and value(row, b) == y for row in rows), (a, x, b, y)
