"""A fixed part of the random calls of tests/fuzz.py."""

from __future__ import annotations

import fuzz
import pytest

from metricseg_kernels.core import backends


@pytest.mark.skipif(backends.why_not("focal", "cpu", "cpu") is not None, reason="no CPU kernels")
@pytest.mark.parametrize("family", fuzz.FAMILIES)
def test_random_calls(family: str) -> None:
    for seed in range(150):
        fuzz.check(family, seed)
