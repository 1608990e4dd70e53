"""The CUDA kernels as the extension ships them: no warning, no spill, registers within their record."""

from __future__ import annotations

import re

import cuda_budgets
import pytest
from cuda_binary import ARCHITECTURES, FAMILIES, Usage, nvcc_version, usages, why_not

from metricseg_kernels.core import extension

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
REGISTER_FILE = 65536
GRACE = 8  # registers above the recorded ones: the unit in which they are granted


def test_no_compiler_warns() -> None:
    """In the last build, which is whole in a fresh clone and else of the sources that changed."""
    assert extension.build_record()["warnings"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernel_spills(family: str) -> None:
    found = usages()[family]
    assert {u.architecture for u in found} == ARCHITECTURES
    assert not [u for u in found if u.stack]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernel_outgrows_its_record(family: str) -> None:
    """Against docs/kernels/budgets.md, if another version of nvcc is here only that no kernel is missing there."""
    found, recorded = cuda_budgets.by_kernel(usages()[family]), cuda_budgets.recorded(family)
    assert found.keys() == recorded.keys(), f"python -m cuda_budgets {family} records what its kernels need"
    if nvcc_version() != cuda_budgets.recorded_version():
        return
    grown = {k: (u.registers, recorded[k]) for k, u in found.items() if u.registers > recorded[k][0] + GRACE}
    grown |= {k: (u.shared, recorded[k]) for k, u in found.items() if u.shared > recorded[k][1]}
    assert not grown


def test_anchors_fill_a_multiprocessor() -> None:
    """Kernels that wait for memory: 1,024 threads or more of them on a multiprocessor at a time."""
    found = usages()["anchors"]
    names = ("count", "plan", "collect", "place", "gather_fwd", "gather_bwd")
    assert {n for n in names for u in found if f"{n}_kernel" in u.kernel} == set(names)
    for u in found:
        assert u.registers <= 64, u
        assert u.shared <= 4096, u  # csrc/common/cuda/device_limits.h


@pytest.mark.parametrize(("family", "kernel"), [("segments", "step_kernel"), ("retrieval", "part_kernel")])
def test_products_fill_a_multiprocessor(family: str, kernel: str) -> None:
    """Three blocks of 128 threads of a kernel that holds products in registers; 1,024 threads of the others."""
    found = usages()[family]
    assert sum(kernel in u.kernel for u in found) == 4
    for u in found:
        assert u.registers <= (REGISTER_FILE // (3 * 128) if kernel in u.kernel else 64), u
        assert u.shared <= 4096, u  # beside dynamic shared memory: csrc/common/cuda/launch.h


def test_products_of_centers_keep_their_residence() -> None:
    """Two blocks of 256 threads on a multiprocessor; one of the kernels that hold 160 classes and more in registers."""
    found = [u for u in usages()["centers"] if re.search(r"project_kernel|\dsums_kernel", u.kernel)]
    assert len(found) == 2 * (7 + 7 + 4)  # four kinds of products with 32 classes, three with 160; S and T
    for u in found:
        wide, exact = "Li5E" in u.kernel, "Exact" in u.kernel
        alone = (wide and (exact or "sums_kernel" in u.kernel)) or "ExactId" in u.kernel
        assert u.registers <= REGISTER_FILE // (256 * (1 if alone else 2)), u


def test_the_walk_keeps_its_residence() -> None:
    """Blocks of 128 threads on a multiprocessor: what resident_blocks of forms.cuh promises the launch geometry."""
    walks = {}
    for u in usages()["focal"]:
        if match := re.search(r"walk_kernelI([fd])Li(\d+)ELb([01])ENS0_\d+(\w+?Form)E", u.kernel):
            walks[(u.architecture, *match.groups())] = u
    assert len(walks) == 2 * (2 * (4 + 1) + (1 + 1))  # architectures, gradient, sizes; in fp64 only with a gradient
    for (_, scalar, kt, grad, _), u in walks.items():
        wanted = 2 if scalar == "d" else (2 if int(kt) > 20 else 3 if int(kt) > 12 else 4) + (grad == "0")
        assert resident(u) >= wanted, u
        assert u.shared <= 4096, u  # beside the dynamic shared memory that the geometry lays out


def resident(u: Usage) -> int:
    """Blocks of 128 threads for whose registers a multiprocessor has room."""
    return REGISTER_FILE // (128 * -(-u.registers // 8) * 8)


def test_the_walk_of_regions_keeps_its_residence() -> None:
    """The same of the region family, whose sums take registers in forward."""
    found = [(u, re.search(r"walk_kernelI([fd])Li(\d+)ELb([01])", u.kernel)) for u in usages()["region"]]
    walks = [(u, *match.groups()) for u, match in found if match]
    assert len(walks) == 2 * 2 * (4 + 1 + 1 + 3)
    for u, scalar, kt, grad in walks:
        wanted = 2 if scalar == "d" or (grad == "1" and int(kt) > 20) else 3 if int(kt) > 12 else 4
        assert resident(u) >= wanted, u
        assert u.shared <= 4096, u


def test_the_walk_of_distillation_keeps_its_residence() -> None:
    """The same of the distill family, which holds the classes of two maps."""
    found = [(u, re.search(r"walk_kernelI([fd])Li(\d+)ELb([01])", u.kernel)) for u in usages()["distill"]]
    walks = [(u, *match.groups()) for u, match in found if match]
    assert len(walks) == 2 * (2 * 3 + 1)
    for u, scalar, kt, grad in walks:
        wanted = 2 if scalar == "d" else (4, 3, 2)[int(kt) // 8] if grad == "1" else 3 if int(kt) > 12 else 4
        assert resident(u) >= wanted, u
        assert u.shared <= 4096, u


def test_the_register_tile_is_most_of_the_registers() -> None:
    """5 KT values (3 KT without gradient) live in registers; what a lane needs besides is bounded."""
    for u in usages()["focal"]:
        if match := re.search(r"walk_kernelIfLi(\d+)ELb([01])ENS0_\d+SoftmaxForm", u.kernel):
            kt, grad = map(int, match.groups())
            assert u.registers - (5 if grad else 3) * kt <= 80, u
