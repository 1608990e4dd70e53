"""A form that no backend has: what it takes to add one."""

from __future__ import annotations

import pytest
import torch
from form_checks import CALLS, compare
from places import ROOT

from metricseg_kernels.contrast import cpu, forms

FAMILY, BACKENDS = "contrast", ("cpu", "triton")
triton = pytest.importorskip("metricseg_kernels.contrast.triton", exc_type=ImportError)
spread = pytest.importorskip("spread_form", exc_type=ImportError)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forms.FORMS, "spread", spread.Spread)
    monkeypatch.setitem(cpu.EPILOGUES, "spread", spread.OnCpu)
    monkeypatch.setitem(triton.EPILOGUES, "spread", spread.OnTriton)


@pytest.mark.parametrize(("name", "dtype"), CALLS)
def test_spread(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    compare(spread.Spread, spread.spread, name, dtype, backend, device)


def test_it_takes_few_lines() -> None:
    """Beside imports."""
    text = (ROOT / "tests/kernels/contrast/spread_form.py").read_text()
    assert sum(bool(line.strip()) for line in text[text.index("class Stats") :].splitlines()) < 80
