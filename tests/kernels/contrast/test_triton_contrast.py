"""Compilations of the contrast family's Triton kernels: what causes one."""

from __future__ import annotations

import json

import launches
import pytest

COUNTS = """
import json, launches, torch
from contrast_launches import launch

kernels, counts = set(), []
with launches.compile_only(90) as compiled:
    for rows in (2000, 2001, 2048, 9000, 9008, 20001):
        launch(64, torch.bfloat16, "{form}", rows, {columns}, "both", False, False)
        kernels |= {{(name, id(kernel)) for name, kernel, _ in compiled}}
        counts.append(len(kernels))
print(json.dumps(counts))
"""


@pytest.mark.parametrize("columns", ["None", "rows + 7"], ids=["one-set", "two-sets"])
@pytest.mark.parametrize("form", ["negatives", "hinge"])
def test_another_number_of_rows_makes_no_new_kernel(form: str, columns: str) -> None:
    counts = json.loads(launches.in_compiling_process("-c", COUNTS.format(form=form, columns=columns)))
    assert counts[0] > 0 and set(counts) == {counts[0]}
