"""The contract between op families and the rest: backends alike, and few places that name a family."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import torch
from places import ROOT

import metricseg_kernels as mk
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

ALLOWED = {"metricseg_kernels/core/registry.py", "metricseg_kernels/__init__.py"}
# the model layer and its studies call ops by name; tests of an op lie in the folder of its family
APART = ("metricseg/", "benchmarks/camvid", "benchmarks/study", "benchmarks/short_training", "benchmarks/harness/peers", "docs/", "tests/build", "tests/support/cuda_",
         "tests/benchmarks", "tests/losses", "tests/integrations", "tests/models", "tests/training", "tests/data", "tests/kernels")  # fmt: skip
TEXT = (".py", ".toml", ".cpp", ".cu", ".cuh", ".h", "")


def parameters(kernel) -> list[str]:
    """Names of a kernel's parameters: a Python function, or an op of the extension."""
    if inspect.isfunction(kernel):
        return list(inspect.signature(kernel).parameters)
    return [argument.name for argument in kernel._schema.arguments]


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_have_the_same_functions(family: str) -> None:
    pytest.importorskip("triton")
    record = FAMILIES[family]
    modules = {name: backends.kernels(family, name) for name in record.backends if name != "reference"}
    for kernel, inputs in record.kernels.items():
        names = {name: parameters(getattr(module, kernel)) for name, module in modules.items()}
        assert len(set(map(tuple, names.values()))) == 1, names
        assert 0 < inputs < len(next(iter(names.values())))
    # capabilities: in all of them or in none
    flags = [{n for n, v in vars(module).items() if n.isupper() and isinstance(v, bool)} for module in modules.values()]
    assert all(found == flags[0] for found in flags), flags


def test_the_order_on_cuda_depends_on_dtype_precision_and_op() -> None:
    for record in FAMILIES.values():
        assert all(sorted(order) == sorted(record.cuda) for order in record.cuda_but.values())
    before = torch.get_float32_matmul_precision()
    for precision, first in (("highest", "cuda"), ("high", "triton")):
        torch.set_float32_matmul_precision(precision)
        assert backends.order("centers", "cuda", torch.float32)[0] == first
        assert backends.order("centers", "cuda", torch.float64)[0] == "cuda"
        assert backends.order("centers", "cuda", torch.bfloat16)[0] == "triton"
    torch.set_float32_matmul_precision(before)
    assert [backends.order("focal", "cuda", torch.float32, op)[0] for op in (None, "sigmoid_focal")] == [
        "cuda",
        "triton",
    ]
    assert backends.order("centers", "cpu", torch.float64)[0] == "cpu"


def test_a_dtype_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.why_not("contrast", "triton", "cpu", torch.float32) is None
    rows = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="'triton' can't run here: Triton's interpreter has no bfloat16 arithmetic"):
        mk.pixel_contrast_loss(rows, torch.arange(2), backend="triton")


@pytest.mark.parametrize("family", FAMILIES)
def test_few_places_name_a_family(family: str) -> None:
    """Outside folders of families (whose arguments may have such names), the model layer and the documentation: the
    registry and the exports. The third place is docs/backends.md, see below."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    named = re.compile(rf'"{family}"|\b(bench_{family}|{family}_(cases|calls|launches))\b|^(from|import) .*\b{family}\b', re.M)  # fmt: skip
    found = set()
    for name in map(Path, listing.stdout.splitlines()):
        if any(f in name.as_posix() for f in FAMILIES) or name.as_posix().startswith(APART) or name.suffix not in TEXT:
            continue
        if (ROOT / name).exists() and named.search((ROOT / name).read_text()):
            found.add(name.as_posix())
    assert found <= ALLOWED, found - ALLOWED


@pytest.mark.parametrize("backend", ("cpu", "cuda", "triton"))
def test_what_a_backend_was_tested_on_is_told_once(backend: str) -> None:
    """In the table of docs/backends.md every family stands in one row of each of its backends."""
    rows = re.findall(rf"^\| `{backend}` \| ([a-z, ]+) \|.*\|.*\|.*\|$", (ROOT / "docs/backends.md").read_text(), re.M)
    told = [family for row in rows for family in row.split(", ")]
    assert sorted(told) == sorted(family for family, record in FAMILIES.items() if backend in record.backends)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_pages(family: str) -> None:
    for page in (f"families/{family}.md", f"kernels/{family}.md", f"pictures/{family}.py"):
        assert (ROOT / "docs" / page).exists(), page
