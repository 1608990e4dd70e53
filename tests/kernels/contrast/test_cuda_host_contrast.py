"""The CUDA kernels of the contrast family on the host: the tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import torch
from contrast_cases import CASES, FORMS, NAMED, Case, against_reference
from cuda_host.fixtures import shim  # noqa: F401
from test_contrast import FAMILY  # noqa: F401

from metricseg_kernels.contrast import cuda, op


@pytest.fixture
def backend(shim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    return cuda_host.stand_in(monkeypatch, op, shim, cuda)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_loss_and_gradients(form: str, case: Case, dtype: torch.dtype, backend: str) -> None:
    against_reference(form, case, dtype, backend, "cpu")
