"""The CUDA kernels on the host: builds `focal.cpp` with pybind11 and ninja, and puts torch tensors through it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from filelock import FileLock  # torch brings it
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = "-std=c++17 -fPIC -fvisibility=hidden"
FAST = "-O1 -Wall -Wextra -Werror -Wno-unknown-pragmas"
SANITIZED = "-O0 -g1 -fsanitize=address -fno-omit-frame-pointer"
NINJA = """\
rule cxx
  command = {compiler} {flags} -MMD -MF $out.d -shared $in -o $out
  depfile = $out.d
  deps = gcc
build {output}: cxx {source}
"""


def why_not() -> str | None:
    """None where the kernels can be built here, else the reason."""
    if shutil.which("g++") is None or sys.platform != "linux":
        return "needs g++ on Linux"
    for name in ("pybind11", "ninja"):
        if importlib.util.find_spec(name) is None:
            return f"the package {name} is not installed"
    return None


def build(family: str, sanitize: bool = False) -> Path:
    """The compiled module of an op family, rebuilt where a source changed."""
    import ninja
    import pybind11

    folder = ROOT / "build" / ("cuda_host_asan" if sanitize else "cuda_host")
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{family}{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = f"{FLAGS} {SANITIZED if sanitize else FAST} -I{pybind11.get_include()} -I{sysconfig.get_paths()['include']}"
    text = NINJA.format(compiler="g++", flags=flags, output=output, source=HERE / f"{family}.cpp")
    command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder), "-f", f"{family}.ninja"]
    with FileLock(folder / f"{family}.lock"):  # the suite may run in several processes
        (folder / f"{family}.ninja").write_text(text)
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stdout + result.stderr)
    return output


def load(family: str, sanitize: bool = False) -> ModuleType:
    spec = importlib.util.spec_from_file_location(family, build(family, sanitize))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _array(value: object) -> object:
    """A tensor as the numpy array over the same memory; bfloat16 as the unsigned integers that hold its bits."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def kernels(module: ModuleType) -> SimpleNamespace:
    """The raw kernels of a module, taking torch tensors like those of every backend."""

    def wrap(name: str) -> object:
        return lambda *arguments: getattr(module, name)(*map(_array, arguments))

    return SimpleNamespace(**{name: wrap(name) for name in dir(module) if name.endswith("_kernel")})
