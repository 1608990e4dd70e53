"""The CUDA kernels of a family, compiled by nvcc without torch: what each needs on each architecture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from places import ROOT


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


def version_of(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else "unknown"


# What a family's run.cuh offers, called once for every type that it is shipped for.
USES = {
    "focal": """
template <typename T>
void use(Device& d, Params<T> p, T* t) {
  softmax_focal(d, p);
  sigmoid_focal(d, p);
  kth_largest(d, static_cast<const T*>(t), 0, 0, T(0), t);
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
void use(Device& d, SimilarityParams<T> p, SoftParams<T> q, LabelSumsParams<T> l, MeansParams<T> m,
         MeansGradParams<T> g, FoldParams<T> f, PullParams<T> u) {
  similarity_fwd(d, p);
  similarity_bwd(d, p);
  soft_means_fwd(d, q, m);
  soft_means_bwd(d, q, g);
  hard_means_fwd(d, l, m);
  hard_means_bwd(d, l, g);
  fold_fwd(d, f);
  fold_bwd(d, f);
  mean_pull(d, u);
}
template void use(Device&, SimilarityParams<float>, SoftParams<float>, LabelSumsParams<float>, MeansParams<float>,
                  MeansGradParams<float>, FoldParams<float>, PullParams<float>);
template void use(Device&, SimilarityParams<double>, SoftParams<double>, LabelSumsParams<double>, MeansParams<double>,
                  MeansGradParams<double>, FoldParams<double>, PullParams<double>);
""",
    "distill": """
template void metricseg::distill::distill(Device&, const Params<float>&);
template void metricseg::distill::distill(Device&, const Params<double>&);
""",
    "refine": """
template void metricseg::refine::refine_fwd(Device&, const RefineParams<float>&);
template void metricseg::refine::refine_fwd(Device&, const RefineParams<double>&);
template void metricseg::refine::refine_bwd(Device&, const RefineParams<float>&);
template void metricseg::refine::refine_bwd(Device&, const RefineParams<double>&);
""",
    "contrast": """
template <class Kind>
void use(Device& d, ContrastParams<typename Kind::Sum> p) {
  Contrast<Products<Kind>, Device> contrast(d, p, true);
  contrast.forward();
  contrast.backward();
}
template void use<Exact<double>>(Device&, ContrastParams<double>);
template void use<Exact<float>>(Device&, ContrastParams<float>);
template void use<Tf32<false>>(Device&, ContrastParams<float>);
template void use<Half<__nv_bfloat16>>(Device&, ContrastParams<float>);
template void use<Half<__half>>(Device&, ContrastParams<float>);
template void metricseg::contrast::sort_rows(Device&, const SortParams<float>&);
template void metricseg::contrast::sort_rows(Device&, const SortParams<double>&);
template void metricseg::contrast::mean(Device&, const MeanParams<float>&);
template void metricseg::contrast::mean(Device&, const MeanParams<double>&);
""",
    "predict": """
template void metricseg::predict::predict<float>(Device&, const CudaParams&);
template void metricseg::predict::predict<double>(Device&, const CudaParams&);
""",
    "region": """
template void metricseg::region::region_fwd(Device&, const Params<float>&);
template void metricseg::region::region_fwd(Device&, const Params<double>&);
template void metricseg::region::region_bwd(Device&, const Params<float>&);
template void metricseg::region::region_bwd(Device&, const Params<double>&);
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


def compile_family(family: str, nvcc: str, folder: Path) -> list[Usage]:
    """Compiles to folder/<family>.o; a warning is an error."""
    source = folder / f"{family}.cu"
    source.write_text(instantiations(family))
    command = [
        nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "--threads", "2", "-c", str(source),
        "-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90",
        "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills", "-Xcompiler", "-Wall", "-o", str(folder / f"{family}.o"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        re.DOTALL,
    )
    found = [
        Usage(name, arch, int(registers), int(stack), int(spilled), int(shared or 0))
        for name, arch, stack, spilled, registers, shared in pattern.findall(result.stderr)
    ]
    if {u.architecture for u in found} != {"sm_80", "sm_90"}:
        raise RuntimeError(f"nvcc tells of no kernels: {result.stderr}")
    return found
