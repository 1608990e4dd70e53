"""Backends as a fixture. Without a device, Triton kernels run in their interpreter, which must be chosen before import."""

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from metricseg_kernels.core import backends  # noqa: E402


@pytest.fixture(params=["reference", "cpu", "triton", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run here; the others are skipped with their reason."""
    reason = backends.why_not(request.param, device_of(request.param))
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    return device_of(backend)


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" or (backend == "triton" and ON_GPU) else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not ON_GPU:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
