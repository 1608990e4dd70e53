"""A fixed part of the random calls of `fuzz`."""

from __future__ import annotations

import fuzz
import pytest

from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES


@pytest.mark.skipif(backends.why_not("focal", "cpu", "cpu") is not None, reason="no CPU kernels")
@pytest.mark.parametrize("family", FAMILIES)
def test_random_calls(family: str) -> None:
    for seed in range(150):
        fuzz.check(family, seed)
