"""Compilations of the contrast family's Triton kernels: what causes one."""

from __future__ import annotations

import json

import launches

COUNTS = """
import json, launches, torch
from contrast_launches import launch

counts = {}
with launches.compile_only(90) as compiled:
    for form in ("negatives", "hinge"):
        for sets in ("one set", "two sets"):
            kernels = set()
            for rows in (2000, 2001, 2048, 9000, 9008, 20001):
                compiled.clear()
                launch(64, torch.bfloat16, form, rows, None if sets == "one set" else rows + 7, "both", False, False)
                kernels |= {(name, id(kernel)) for name, kernel, _ in compiled}
                counts.setdefault(f"{form}, {sets}", []).append(len(kernels))
print(json.dumps(counts))
"""


def test_another_number_of_rows_makes_no_new_kernel() -> None:
    counts = json.loads(launches.in_compiling_process("-c", COUNTS))
    assert len(counts) == 4 and all(found[0] > 0 and set(found) == {found[0]} for found in counts.values()), counts
