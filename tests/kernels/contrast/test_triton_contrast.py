"""Compilations of the contrast family's Triton kernels: what causes one."""

from __future__ import annotations

import itertools

import contrast_launches
import launches
import torch

from benchmarks.harness.memory import FreshProcesses


def launch_all(sizes: list[int]) -> None:
    for form, two_sets, rows in itertools.product(("negatives", "hinge"), (False, True), sizes):
        columns = rows + 7 if two_sets else None
        contrast_launches.launch(64, torch.bfloat16, form, rows, columns, "both", False, False)


def test_another_number_of_rows_makes_no_new_kernel(fresh_processes: FreshProcesses) -> None:
    sizes = [2000, 2001, 2048, 9000, 9008, 20001]
    first, every = (launches.compiled_by(fresh_processes, launch_all, few) for few in (sizes[:1], sizes))
    assert first and first == every
