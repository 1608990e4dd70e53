"""Which tests of Triton kernels run where.

Each case costs a compilation. On a device, dtypes other than fp32 take a part of the cases. Without one, all of these
run compiled (ttsem_plugin.py), but for opcheck and torch.compile, which look for a driver, and gradcheck. Triton's
interpreter takes seconds for a case and has no bf16 arithmetic. It runs the first case of the tests in INTERPRETED, and
in fp32 every fourth one of a family's INTERPRETED_TESTS, out of its INTERPRETED cases. Opcheck and torch.compile know a
backend by its name alone, so there those of one family do. METRICSEG_CASES=n takes every n-th case of the interpreter,
of ttsem, and of the CUDA kernels on the host (tests/support/cuda_host); 1 takes all.
"""

from __future__ import annotations

import collections
import importlib
import os
from fnmatch import fnmatchcase

import pytest
import torch

from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

# ttsem has no driver for opcheck and torch.compile; the others take minutes there
BY_NAME = ("test_opcheck*", "test_compile_*")
INTERPRETED = ("test_gradcheck*", "test_the_loss_is_the_published_one*",
               "test_no_shape_depends_on_data_and_nothing_meets_the_host*")  # fmt: skip
# minutes without a device
ON_DEVICE = ("test_nothing_but_the_gradient_is_larger_than_the_logits*", "test_more_rows_than_a_panel*panels*",
             "test_more_rows_than_a_panel*of-many*", "test_an_*_is_its_values[[]triton-margin-*",
             "test_an_*_is_its_values[[]triton-contrast-[!t]*")  # fmt: skip


def of_triton(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return "triton" in (params.get("backend"), params.get("name"))


class Sample:
    """Every n-th case of each test that takes long, from the first on."""

    def __init__(self) -> None:
        self.step = int(os.environ.get("METRICSEG_CASES", 4 if backends.interpreting() else 1))
        self.step_on_host = int(os.environ.get("METRICSEG_CASES", 1))
        self.seen = collections.Counter[str]()

    def takes(self, item: pytest.Item) -> bool:
        on_host = item.path.name.startswith("test_cuda_host_") and item.path.name != "test_cuda_host_shim.py"
        if not (on_host or of_triton(item)):
            return True
        function = item.nodeid.split("[")[0]
        self.seen[function] += 1
        if on_host:
            return (self.seen[function] - 1) % self.step_on_host == 0
        if self.step > 1 and backends.interpreting() and matches(item, INTERPRETED):
            return self.seen[function] == 1
        return (self.seen[function] - 1) % self.step == 0


def selected(item: pytest.Item, on_device: bool) -> bool:
    """Whether this test runs here; True for tests of other backends."""
    if not of_triton(item):
        return True
    params = item.callspec.params
    family = getattr(item.module, "FAMILY", None)
    cases = importlib.import_module(f"{family}_cases") if family in FAMILIES else None
    case = getattr(params.get("case"), "id", None)
    dtype = params.get("dtype", torch.float32)
    if backends.interpreting():
        core = item.originalname in getattr(cases, "INTERPRETED_TESTS", ())
        core = core and case in (None, *getattr(cases, "INTERPRETED", ()))
        return dtype == torch.float32 and (core or matches(item, INTERPRETED))
    if case is not None and dtype != torch.float32 and case not in getattr(cases, "IN_EVERY_DTYPE", {case}):
        return False
    return on_device or not matches(item, BY_NAME + INTERPRETED + ON_DEVICE)


def matches(item: pytest.Item, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(item.name, pattern) for pattern in patterns)
