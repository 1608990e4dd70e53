"""The CUDA kernels, compiled for the architectures they are shipped for: no warning, no spill, registers in budget."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT

REGISTER_FILE = 65536


class Usage(NamedTuple):
    kernel: str  # as the compiler prints it, template arguments included
    architecture: str
    registers: int
    stack: int
    spilled: int
    shared: int


def find_nvcc() -> str | None:
    homes = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/opt/cuda")
    places = [f"{home}/bin/nvcc" for home in homes if home]
    return next((p for p in places if os.path.exists(p)), shutil.which("nvcc"))


# What a family's run.cuh offers, called once for every type that it is shipped for.
USES = {
    "focal": """
template <typename T>
void use(Device& d, Params<T> p, T* t) {
  softmax_focal(d, p);
  sigmoid_focal(d, p);
  kth_largest(d, static_cast<const T*>(t), 0, 0, t);
}
template void use(Device&, Params<float>, float*);
template void use(Device&, Params<double>, double*);
""",
    "anchors": """
template <typename T>
void use(Device& d, GatherParams<T> p) {
  gather_pixels_fwd(d, p);
  gather_pixels_bwd(d, p);
}
template void use(Device&, GatherParams<float>);
template void use(Device&, GatherParams<double>);
template void metricseg::anchors::sample_anchors(Device&, const SampleParams&);
""",
    "segments": """
template <typename T>
void use(Device& d, KmeansParams<T> p, LabelSumsParams<T> q) {
  spherical_kmeans(d, p, 1);
  label_sums_fwd(d, q);
  label_sums_bwd(d, q);
}
template void use(Device&, KmeansParams<float>, LabelSumsParams<float>);
template void use(Device&, KmeansParams<double>, LabelSumsParams<double>);
template void metricseg::segments::split_by_label(Device&, const SplitParams&);
""",
    "centers": """
template <typename T>
void use(Device& d, SimilarityParams<T> p, SoftSumsParams<T> q) {
  similarity_fwd(d, p);
  similarity_bwd(d, p);
  soft_sums_fwd(d, q);
  soft_sums_bwd(d, q);
}
template void use(Device&, SimilarityParams<float>, SoftSumsParams<float>);
template void use(Device&, SimilarityParams<double>, SoftSumsParams<double>);
""",
    "refine": """
template void metricseg::refine::refine_fwd(Device&, const RefineParams<float>&);
template void metricseg::refine::refine_fwd(Device&, const RefineParams<double>&);
template void metricseg::refine::refine_bwd(Device&, const RefineParams<float>&);
template void metricseg::refine::refine_bwd(Device&, const RefineParams<double>&);
""",
    "retrieval": """
template void metricseg::retrieval::topk(Device&, const TopkParams<float>&);
template void metricseg::retrieval::topk(Device&, const TopkParams<double>&);
""",
}


def instantiations(family: str) -> str:
    """A translation unit with every kernel of the family, and no torch: what run.cuh launches, from a device of air."""
    return f"""
#include "{ROOT}/csrc/{family}/run.cuh"
#include "{ROOT}/csrc/common/cuda/device_limits.h"
using namespace metricseg;
using namespace metricseg::{family};
struct Device {{
  DeviceLimits limits() const;
  template <typename T> T* scratch(int64_t);
  void clear(void*, int64_t);
  template <typename... P, typename... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t smem, A... arguments) {{
    kernel<<<blocks, threads, smem>>>(arguments...);
  }}
}};
{USES[family]}
"""


@functools.cache
def compile_family(family: str, folder: Path) -> list[Usage]:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc (CUDA_HOME, /usr/local/cuda, /opt/cuda, PATH)")
    source = folder / f"{family}.cu"
    source.write_text(instantiations(family))
    command = [
        nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "--threads", "2", "-c", str(source),
        "-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90",
        "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills", "-Xcompiler", "-Wall", "-o", str(folder / f"{family}.o"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        re.DOTALL,
    )
    found = [
        Usage(name, arch, int(registers), int(stack), int(spilled), int(shared or 0))
        for name, arch, stack, spilled, registers, shared in pattern.findall(result.stderr)
    ]
    assert {u.architecture for u in found} == {"sm_80", "sm_90"}
    return found


@pytest.fixture(scope="module")
def usages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Usage]]:
    """usages(family): what each of its kernels needs on each architecture."""
    folder = tmp_path_factory.mktemp("nvcc")
    return lambda family: compile_family(family, folder)


@pytest.mark.parametrize("family", USES)
def test_no_kernel_spills(family: str, usages: Callable[[str], list[Usage]]) -> None:
    assert not [u for u in usages(family) if u.spilled or u.stack]


def test_anchors_fill_a_multiprocessor(usages: Callable[[str], list[Usage]]) -> None:
    """Kernels that wait for memory: 1,024 threads or more of them on a multiprocessor at a time."""
    found = usages("anchors")
    names = ("count", "plan", "collect", "repair", "place", "gather_fwd", "gather_bwd")
    assert {n for n in names for u in found if f"{n}_kernel" in u.kernel} == set(names)
    for u in found:
        assert u.registers <= 64, u
        assert u.shared <= 16 << 10, u


@pytest.mark.parametrize(("family", "kernel"), [("segments", "step_kernel"), ("retrieval", "part_kernel")])
def test_products_fill_a_multiprocessor(family: str, kernel: str, usages: Callable[[str], list[Usage]]) -> None:
    """Three blocks of 128 threads of a kernel that holds products in registers; 1,024 threads of the others."""
    found = usages(family)
    assert sum(kernel in u.kernel for u in found) == 4
    for u in found:
        assert u.registers <= (REGISTER_FILE // (3 * 128) if kernel in u.kernel else 64), u
        assert u.shared <= 4096, u  # beside dynamic shared memory: csrc/common/cuda/launch.h


def test_products_of_centers_keep_their_residence(usages: Callable[[str], list[Usage]]) -> None:
    """Two blocks of 256 threads on a multiprocessor; one of the kernels that hold 160 classes and more in registers."""
    found = [u for u in usages("centers") if re.search("project_kernel|sums_kernel", u.kernel)]
    assert len(found) == 2 * (7 + 7 + 4)  # four kinds of products with 32 classes, three with 160; S and T
    for u in found:
        wide, exact = "Li5E" in u.kernel, "Exact" in u.kernel
        alone = (wide and (exact or "sums_kernel" in u.kernel)) or "ExactId" in u.kernel
        assert u.registers <= REGISTER_FILE // (256 * (1 if alone else 2)), u


def test_the_walk_keeps_its_residence(usages: Callable[[str], list[Usage]]) -> None:
    """Blocks of 128 threads on a multiprocessor: what launch_config.h's resident_blocks promises the launch geometry."""
    walks = {}
    for u in usages("focal"):
        if match := re.search(r"walk_kernelI([fd])Li(\d+)ELb([01])ENS0_\d+(\w+?Form)E", u.kernel):
            walks[(u.architecture, *match.groups())] = u
    sizes = {("f", "SoftmaxForm"): (4, 12, 20, 28), ("f", "SigmoidForm"): (12,)}
    sizes |= {("d", "SoftmaxForm"): (4,), ("d", "SigmoidForm"): (4,)}
    assert len(walks) == 2 * 2 * sum(map(len, sizes.values()))
    for (_, scalar, kt, grad, _), u in walks.items():
        wanted = 2 if scalar == "d" else (2 if int(kt) > 20 else 3 if int(kt) > 12 else 4) + (grad == "0")
        granted = REGISTER_FILE // (128 * -(-u.registers // 8) * 8)
        assert granted >= wanted, u
        assert u.shared <= 4096, u  # beside the dynamic shared memory that the geometry lays out


def test_the_register_tile_is_most_of_the_registers(usages: Callable[[str], list[Usage]]) -> None:
    """5 KT values (3 KT without gradient) live in registers; what a lane needs besides is bounded."""
    for u in usages("focal"):
        if match := re.search(r"walk_kernelIfLi(\d+)ELb([01])ENS0_\d+SoftmaxForm", u.kernel):
            kt, grad = map(int, match.groups())
            assert u.registers - (5 if grad else 3) * kt <= 80, u
