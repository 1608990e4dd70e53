"""`python -m metricseg_kernels`: the install, the machine, the backend that each op takes, and why not the others."""

from __future__ import annotations

import platform
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch

import metricseg_kernels as package

from .core import backends, extension
from .core.registry import FAMILIES


def report() -> str:
    build = extension.build_record()
    lines = [
        f"metricseg_kernels {package.__version__}  ({package.__file__})",
        *_shadowed(),
        f"python {platform.python_version()}, torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}), "
        f"triton {_triton_version()}",
        f"extension: {'loaded' if extension.error is None else extension.error}",
    ]
    if build.get("torch"):
        lines.append(f"  built with torch {build['torch']}, {build['cxx']}, CUDA home {build['cuda_home']}")
    if build.get("cuda_error"):
        lines.append(f"  without CUDA kernels: {build['cuda_error']}")
    if build.get("compiler"):
        lines += ["  output of the compiler:", *(f"    {line}" for line in build["compiler"])]
    lines.append(f"cpu: {torch.get_num_threads()} threads, {platform.machine()}")
    for i in range(torch.cuda.device_count()):
        lines.append(
            f"cuda:{i}: {torch.cuda.get_device_name(i)}, sm_{''.join(map(str, torch.cuda.get_device_capability(i)))}"
        )
    if not torch.cuda.is_available():
        lines.append("cuda: no device")
    for family, record in FAMILIES.items():
        lines.append(f"\n{family}: {', '.join(_functions(family))}")
        for device, order in (("cpu", record.cpu), ("cuda", record.cuda)):
            absent = device == "cuda" and not torch.cuda.is_available()
            lines.append(f"  on {device} tensors{' (none here; as far as the install goes)' if absent else ''}:")
            lines += _reasons(family, device, order)
    return "\n".join(lines)


def _shadowed() -> list[str]:
    """A line for each other copy of this package that the import would have found without this one."""
    name, own = package.__name__, Path(package.__file__).resolve().parent
    specs = [PathFinder.find_spec(name, [entry]) for entry in sys.path]
    specs += [finder.find_spec(name, None) for finder in sys.meta_path if finder is not PathFinder]
    folders = [Path(spec.origin).resolve().parent for spec in specs if spec is not None and spec.origin is not None]
    remedy = " (run from another folder to use that one)" if own.parent == Path.cwd() else ""
    return [f"  shadows the copy in {folder}{remedy}" for folder in dict.fromkeys(folders) if folder != own]


def _functions(family: str) -> list[str]:
    """The public functions of an op family."""
    home = f"{package.__name__}.{family}"
    return [n for n in package.__all__ if n[0].islower() and getattr(package, n).__module__ == home]


def _reasons(family: str, device: str, order: tuple[str, ...]) -> list[str]:
    taken, lines = False, []
    for backend in order:
        reason = backends.why_not(family, backend, device)
        state = f"no: {reason}" if reason else ("yes" if taken else "takes it")
        taken = taken or reason is None
        lines.append(f"    {backend:<10}{state}")
    return lines


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


if __name__ == "__main__":
    print(report())
