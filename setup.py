"""Builds the one extension, metricseg_kernels/_C.so: CPU kernels always, CUDA kernels where nvcc is at hand.

METRICSEG_BUILD_CUDA=auto|0|1 (1: fail if CUDA kernels can't be built). Without a C++ compiler the install still
succeeds, in pure Python; what was built, and why not more, goes to metricseg_kernels/_build.json, which
`python -m metricseg_kernels` prints. The stable ABI of torch 2.10 is all that the sources use, so the result runs
under every later torch, whichever one the build saw.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", STABLE_ABI]
NVCC_FLAGS = ["-O3", "-Xcompiler", "-fvisibility=hidden", STABLE_ABI]
CUDA_PLACES = ("/usr/local/cuda", "/opt/cuda", os.environ.get("CONDA_PREFIX", ""))


def find_cuda_home() -> str | None:
    """A toolkit with nvcc in it: CUDA_HOME first, then the customary places, then nvcc on the PATH."""
    on_path = shutil.which("nvcc")
    behind = str(Path(on_path).resolve().parent.parent) if on_path else ""
    for home in (os.environ.get("CUDA_HOME", ""), *CUDA_PLACES, behind):
        if home and (Path(home) / "bin" / "nvcc").exists() and (Path(home) / "include" / "cuda_runtime.h").exists():
            return home
    return None


CUDA_MODE = os.environ.get("METRICSEG_BUILD_CUDA", "auto")
if CUDA_MODE not in ("auto", "0", "1"):
    raise SystemExit(f"METRICSEG_BUILD_CUDA must be auto, 0 or 1, got {CUDA_MODE!r}")
CUDA_HOME = find_cuda_home() if CUDA_MODE != "0" else None
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # before torch looks for it by itself
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    torch, MISSING_TORCH = None, f"torch was not there at build time ({error}); reinstall, or drop --no-build-isolation"


def why_no_cuda() -> str | None:
    if CUDA_MODE == "0":
        return "METRICSEG_BUILD_CUDA=0"
    if CUDA_HOME is None:
        return "no nvcc found (CUDA_HOME, /usr/local/cuda, /opt/cuda, CONDA_PREFIX, PATH)"
    if torch.version.cuda is None and CUDA_MODE == "auto":
        return "this torch has no CUDA (METRICSEG_BUILD_CUDA=1 builds the kernels all the same)"
    return None


def make_extension(with_cuda: bool) -> Extension:
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*/*.cpp"))
    cuda: dict[str, list[str]] = {}
    if with_cuda:
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*/*.cu"))
        target = f"targets/{platform.machine()}-linux/lib"
        cuda = {
            "libraries": ["cudart_static", "dl", "rt"],
            "library_dirs": [d for s in ("lib64", target, "lib") if os.path.isdir(d := f"{CUDA_HOME}/{s}")],
            "include_dirs": [f"{CUDA_HOME}/include"],
        }
    extension = CppExtension(
        "metricseg_kernels._C",
        sources,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        **cuda,
    )
    extension.optional = CUDA_MODE != "1"
    return extension


def build_command() -> type:
    # The stable ABI and a runtime linked statically: nvcc may be of another version than torch's CUDA.
    cpp_extension._check_cuda_version = lambda *_: None
    base = BuildExtension.with_options(no_python_abi_suffix=True)

    class Build(base):
        """Tries with CUDA, then without, then leaves the package pure Python; and writes down what happened."""

        def build_extensions(self) -> None:
            compiler = os.environ.get("CXX", "c++")
            missing = None if shutil.which(compiler) else f"there is no C++ compiler ({compiler})"
            record = {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "cxx": shutil.which(compiler),
                "cuda_home": CUDA_HOME,
                "cuda_arch_list": os.environ["TORCH_CUDA_ARCH_LIST"],
                "cuda_error": missing or why_no_cuda(),
                "error": missing,
            }
            if CUDA_MODE == "1" and record["cuda_error"]:
                raise SystemExit(f"METRICSEG_BUILD_CUDA=1, but {record['cuda_error']}")
            if record["cuda_error"] is None:
                record["cuda_error"] = self.attempt(with_cuda=True)
            if record["cuda_error"] is not None and not missing:
                record["error"] = self.attempt(with_cuda=False)
            self.write_record(record)

        def attempt(self, with_cuda: bool) -> str | None:
            """Builds one variant; the error as text where it can't be built and need not be."""
            vars(self.extensions[0]).update(vars(make_extension(with_cuda)))
            self.extensions[0].optional = False  # so that the reason reaches this place
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                if CUDA_MODE == "1":
                    raise
                kind = "CUDA kernels" if with_cuda else "extension"
                reason = f"the {kind} did not build: {str(error).strip().splitlines()[-1] if str(error) else error!r}"
                print(f"metricseg: {reason}")
                return reason
            finally:
                self.extensions[0].optional = True
            return None

        def write_record(self, record: dict[str, object]) -> None:
            in_place = self.inplace or getattr(self, "editable_mode", False)
            folder = (ROOT if in_place else Path(self.build_lib)) / "metricseg_kernels"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    return Build


if torch is None:
    (ROOT / "metricseg_kernels" / "_build.json").write_text(json.dumps({"error": MISSING_TORCH}) + "\n")
    print(f"metricseg: {MISSING_TORCH}")
    setup()
else:
    setup(ext_modules=[make_extension(with_cuda=why_no_cuda() is None)], cmdclass={"build_ext": build_command()})
