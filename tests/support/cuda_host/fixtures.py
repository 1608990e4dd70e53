"""Fixtures of a module that runs the tests of its FAMILY on CUDA kernels in the host shim."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

import cuda_host


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest) -> ModuleType:
    return cuda_host.require(request.module.FAMILY)


@pytest.fixture
def backend(shim: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    op = importlib.import_module(f"metricseg_kernels.{request.module.FAMILY}.op")
    return cuda_host.stand_in(monkeypatch, op, shim)


@pytest.fixture
def device() -> str:
    return "cpu"
