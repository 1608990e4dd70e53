"""The CUDA kernels on the host: builds `<family>.cpp` with pybind11 and ninja, and puts torch tensors through it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from aten_launches import outermost
from filelock import FileLock  # torch brings it
from torch import Tensor

from metricseg_kernels.core import backends

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SHARED = 160 << 10  # bytes a block may have on sm_80, less a little
FLAGS = "-std=c++17 -fPIC -fvisibility=hidden"
WATCHED = "-O1 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -fsanitize=thread"  # races.h is its library
SANITIZED = "-O0 -g1 -fsanitize=address,alignment -fno-omit-frame-pointer"  # fibers.h is that of the second
NINJA = """\
rule cxx
  command = {compiler} {flags} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} {link} -shared $in -o $out
build {object}: cxx {source}
build {output}: link {object}
"""


def why_not() -> str | None:
    """None where the kernels can be built here, else the reason."""
    if shutil.which("g++") is None or sys.platform != "linux":
        return "needs g++ on Linux"
    for name in ("pybind11", "ninja"):
        if importlib.util.find_spec(name) is None:
            return f"the package {name} is not installed"
    return None


def build(family: str, sanitize: bool = False, more: str = "") -> Path:
    """The compiled module of an op family, rebuilt where a source changed; with more flags of the compiler."""
    import ninja
    import pybind11

    folder = ROOT / "build" / ("cuda_host_asan" if sanitize else "cuda_host")
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{family}{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = f"-I{pybind11.get_include()} -I{sysconfig.get_paths()['include']}"
    flags = f"{FLAGS} {SANITIZED if sanitize else WATCHED} {more} {includes}"
    text = NINJA.format(compiler="g++", flags=flags, link="-fsanitize=address" if sanitize else "", output=output,
                        object=folder / f"{family}.o", source=HERE / f"{family}.cpp")  # fmt: skip
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
    """A tensor as the numpy array over the same memory, also in a list; bfloat16 as unsigned integers with its bits."""
    if isinstance(value, list):
        return [_array(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def kernels(module: ModuleType) -> SimpleNamespace:
    """The raw kernels of a module, taking torch tensors, or tuples of arguments, like those of every backend."""

    def wrap(name: str) -> object:
        def run(*arguments: object) -> None:
            flat = itertools.chain(*(a if isinstance(a, tuple) else (a,) for a in arguments))
            getattr(module, name)(*map(_array, flat))

        return run

    return SimpleNamespace(**{name: wrap(name) for name in dir(module) if name.endswith("_kernel")})


def require(family: str) -> ModuleType:
    """The module of an op family; where it can't be built, the test is skipped with the reason."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    return load(family)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, op: ModuleType, module: ModuleType, through: ModuleType | None = None
) -> str:
    """Backend "cuda", the kernels of its `op` replaced by the module's: two multiprocessors, threads in random order.

    through: the backend's module, if its functions take other arguments than the raw kernels that they call.
    """
    elsewhere, why_not_elsewhere, shimmed = op.kernels, backends.why_not, kernels(module)
    if through is not None:
        monkeypatch.setattr(through, "ops", shimmed)
        shimmed = through
    monkeypatch.setattr(op, "kernels", lambda name: shimmed if name == "cuda" else elsewhere(name))
    monkeypatch.setattr(
        backends, "why_not", lambda family, name, *of: None if name == "cuda" else why_not_elsewhere(family, name, *of)
    )
    module.configure(2, SHARED, 1)
    module.lose_barrier(-1)
    return "cuda"


def launches(module: ModuleType, step: Callable[[], Any]) -> tuple[Any, list[str]]:
    """(result of a step, names of what it launches: operators of ATen, then kernels and memsets); no kernel runs."""
    module.record(True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = step()
    found = [
        *outermost([e for e in profile.events() if e.cpu_parent is None]),
        *(name for name, *_ in module.recorded()),
    ]
    module.record(False)
    return out, found


def run_sanitized(family: str, script: str) -> None:
    """Runs a script that prints "clean" under address sanitizer.

    The script finds the family's module as `m`, and puts numpy arrays through it.
    """
    head = f"""
import importlib.util
import numpy as np
spec = importlib.util.spec_from_file_location({family!r}, {str(build(family, sanitize=True))!r})
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
"""
    result = sanitized(head + script)
    assert result.returncode == 0 and result.stdout.endswith("clean\n"), result.stderr[-4000:]


def sanitized(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process where address sanitizer is loaded before all else."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library) and ctypes.util.find_library("asan") is None:
        pytest.skip("g++ has no address sanitizer")
    environment = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
