"""The form "nca" on one set and on two, with ids: every backend against the specification."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from form_checks import CALLS, compare
from places import ROOT

from metricseg_kernels.contrast import forms, reference

FAMILY = "contrast"


@pytest.mark.parametrize(("name", "dtype"), CALLS)
@pytest.mark.kernels
def test_nca(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    compare(forms.Nca, reference.nca_contrast, name, dtype, backend, device)


@pytest.mark.parametrize("form", forms.FORMS)
def test_fields_have_one_order_in_python_and_cpp(form: str) -> None:
    header = {"negatives": "softmax", "all": "softmax"}.get(form, form)
    text, known = (ROOT / f"csrc/contrast/{header}.h").read_text(), forms.FORMS[form]

    def fields(struct: str) -> tuple[str, ...]:
        found = re.search(rf"struct {struct} {{\s*(?:enum {{ (.*), count }}|double (.*));", text)
        return tuple((found[1] or found[2]).split(", "))

    assert fields("Stats") == known.Stats._fields
    assert fields("Coefs") == ("square",) * (form == "margin") + known.Coefs._fields
    assert fields("Constants") == tuple(f.name for f in dataclasses.fields(known))
