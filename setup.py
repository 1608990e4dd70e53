"""Build the one extension, metricseg_kernels/_C.so: CPU kernels always, CUDA kernels if nvcc is found.

METRICSEG_BUILD_CUDA=auto|0|1 (1: fail if the CUDA kernels can't be built). Without a C++ compiler the install still
succeeds, in pure Python. What was built, and why not more, is in metricseg_kernels/_build.json, which
`python -m metricseg_kernels` prints. The sources use the stable ABI of torch 2.10 and no Python ABI, so one build runs
under every later torch and every Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(f"metricseg needs setuptools 77 or later to build, got {setuptools.__version__}")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# -g0: Python's own flags ask for debug information, which makes the library three times as large
CXX_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", STABLE_ABI]
NVCC_FLAGS = [
    "-O2",
    "-Xfatbin=-compress-all",
    "-Xptxas=-warn-spills",
    "-Xcompiler=-Wall,-fvisibility=hidden",
    STABLE_ABI,
]
LINK_FLAGS = ["-Wl,--strip-all"] if sys.platform == "linux" else []
if os.environ.get("METRICSEG_SANITIZE") == "1":
    LINK_FLAGS = ["-fsanitize=address,undefined,float-cast-overflow"]
    CXX_FLAGS += [*LINK_FLAGS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fno-wrapv", "-O1", "-g1"]
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
COMPILER = os.environ.get("CXX", "c++")
MISSING = None if shutil.which(COMPILER) else f"there is no C++ compiler ({COMPILER})"

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    torch = None
    MISSING = f"torch was not there at build time ({error}); reinstall, or drop --no-build-isolation"
else:
    # The stable ABI and a runtime linked statically: nvcc may be of another version than torch's CUDA.
    cpp_extension._check_cuda_version = lambda *_: None


def why_no_cuda() -> str | None:
    if MISSING:
        return MISSING
    if CUDA_MODE == "0":
        return "METRICSEG_BUILD_CUDA=0"
    if CUDA_HOME is None:
        return "no nvcc found (CUDA_HOME, /usr/local/cuda, /opt/cuda, CONDA_PREFIX, PATH)"
    if torch.version.cuda is None and CUDA_MODE == "auto":
        return "this torch has no CUDA (METRICSEG_BUILD_CUDA=1 builds the kernels all the same)"
    return None


def compression() -> list[str]:
    """The smallest code that nvcc packs, from CUDA 13 on: drivers of earlier versions may not unpack it."""
    text = subprocess.run([f"{CUDA_HOME}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)", text)
    return ["--compress-mode=size"] if release and int(release[1]) >= 13 else []


def make_extension(with_cuda: bool) -> Extension:
    if torch is None:
        return Extension("metricseg_kernels._C", [], optional=CUDA_MODE != "1")
    # in reverse: the vector loops (csrc/simd_*.cpp) take the longest to compile
    sources = sorted((str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp")), reverse=True)
    cuda: dict[str, list[str]] = {}
    nvcc_flags = NVCC_FLAGS
    if with_cuda:
        nvcc_flags = NVCC_FLAGS + compression()
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cu"))
        target = f"targets/{platform.machine()}-linux/lib"
        cuda = {
            "libraries": ["cudart_static", "dl", "rt"],
            "library_dirs": [d for s in ("lib64", target, "lib") if os.path.isdir(d := f"{CUDA_HOME}/{s}")],
            "include_dirs": [f"{CUDA_HOME}/include"],
        }
    extension = CppExtension(
        "metricseg_kernels._C",
        sources,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": nvcc_flags},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
        **cuda,
    )
    extension.optional = CUDA_MODE != "1"
    return extension


@contextlib.contextmanager
def copied_output() -> Iterator[list[str]]:
    """Collect the lines that this process and the compilers print meanwhile; they are printed as before."""
    lines: list[str] = []
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}

    def copy() -> None:
        with open(read, "rb") as pipe:
            for line in pipe:
                lines.append(line.decode(errors="replace").rstrip())
                os.write(kept[1], line)

    for number in kept:
        os.dup2(write, number)
    os.close(write)
    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield lines
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy_of in kept.items():
            os.dup2(copy_of, number)  # closes the last writing end of the pipe: the thread ends
        thread.join()
        for copy_of in kept.values():
            os.close(copy_of)


def first_error(lines: list[str]) -> list[str]:
    """The first error of a compiler or linker and the lines after it; without one, the last lines."""
    for i, line in enumerate(lines):
        if re.search(r"\berror\b.*:|\bfatal\b.*:|undefined reference|cannot find", line):
            return lines[i : i + 10]
    return lines[-10:]


class Build(BuildExtension.with_options(no_python_abi_suffix=True) if torch else build_ext):
    """Try with CUDA, then without, then leave the package pure Python; and write down what happened."""

    def run(self) -> None:
        self.record = {
            "torch": torch and torch.__version__,
            "python": platform.python_version(),
            "cxx": shutil.which(COMPILER),
            "cuda_home": CUDA_HOME,
            "cuda_arch_list": os.environ["TORCH_CUDA_ARCH_LIST"],
            "cuda_error": why_no_cuda(),
            "error": MISSING,
            "compiler": [],
            "warnings": [],
        }
        if CUDA_MODE == "1" and self.record["cuda_error"]:
            raise SystemExit(f"METRICSEG_BUILD_CUDA=1, but {self.record['cuda_error']}")
        target = (ROOT if self.inplace else Path(self.build_lib)) / "metricseg_kernels"
        for folder in (target, Path(self.build_lib, "metricseg_kernels")):
            for stale in folder.glob("_C*"):  # of an earlier build
                stale.unlink()
        super().run()
        target.mkdir(parents=True, exist_ok=True)
        (target / "_build.json").write_text(json.dumps(self.record, indent=1) + "\n")

    def build_extensions(self) -> None:
        if self.record["cuda_error"] is None:
            self.record["cuda_error"] = self.attempt(with_cuda=True)
        if self.record["cuda_error"] is not None and not MISSING:
            self.record["error"] = self.attempt(with_cuda=False)

    def attempt(self, with_cuda: bool) -> str | None:
        """Build one variant; return the error as text if it can't be built and need not be."""
        vars(self.extensions[0]).update(vars(make_extension(with_cuda)))
        self.extensions[0].optional = False  # so that the reason reaches this place
        try:
            with copied_output() as lines:
                super().build_extensions()
        except (Exception, SystemExit) as error:
            if CUDA_MODE == "1":
                raise
            output = first_error(lines) or str(error).strip().splitlines() or [repr(error)]
            self.record["compiler"] = output
            reason = f"the {'CUDA kernels' if with_cuda else 'extension'} did not build: {output[0]}"
            print(f"metricseg: {reason}")
            return reason
        finally:
            self.extensions[0].optional = True
        self.record["warnings"] = [line for line in lines if re.search(r"\bwarning\b", line, re.IGNORECASE)]
        return None


class Wheel(bdist_wheel):
    """Tag a wheel by what is in it: py3-none-<platform> with the library, else py3-none-any."""

    def run(self) -> None:
        if not self.skip_build:  # what an earlier build left, removed modules included, is not packed
            for package in ("metricseg", "metricseg_kernels"):
                shutil.rmtree(Path(self.get_finalized_command("build").build_lib, package), ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        self.root_is_pure = not any(Path(self.bdist_dir, "metricseg_kernels").glob("_C*"))
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[make_extension(why_no_cuda() is None)], cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
