"""Choice of the backend for a call, by the registry and the device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import warnings
from types import ModuleType

import torch
from torch.autograd import forward_ad

from . import extension
from .registry import FAMILIES

BACKENDS = ("reference", "cpu", "triton", "cuda")
MIN_CAPABILITY = (8, 0)  # of devices that the kernels are compiled for, whose tensor cores the Triton kernels use


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(
    family: str, backend: str, device: torch.device | str, dtype: torch.dtype | None = None, volume: bool = False
) -> str | None:
    """None if `backend` can run an op of this family on this device and dtype here, else the reason.

    Data and shapes have no say, but for volumes: every kernel takes every shape.
    """
    device = torch.device(device)
    if backend not in FAMILIES[family].backends:
        return f"{family} has no {backend} kernels"
    if volume and backend not in FAMILIES[family].volumes:
        return f"its {family} kernels take images, no volumes"
    if backend == "reference":
        return None
    if backend in ("cpu", "cuda"):
        if device.type != backend:
            return f"it runs on {backend} tensors, these are on {device.type}"
        return extension.why_no_kernels(device.type) or _unfit(device, backend)
    if (missing := _triton_missing()) is not None:
        return missing
    if device.type == "cpu" and not interpreting():
        return "it runs on cuda tensors (on the CPU only interpreted, with TRITON_INTERPRET=1)"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on cuda tensors, these are on {device.type}"
    if interpreting() and dtype == torch.bfloat16:
        return "Triton's interpreter has no bfloat16 arithmetic"
    return _unfit(device, backend)


@functools.cache
def _unfit(device: torch.device, backend: str) -> str | None:
    """None if the kernels of a backend run on this device, or there is none of its kind, else the reason."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_capability(device)
    got, needed = (".".join(map(str, c)) for c in (found, MIN_CAPABILITY))
    if found < MIN_CAPABILITY:
        return f"it needs a device of compute capability {needed}, this one has {got}"
    built: str = extension.build_record().get("cuda_arch_list", "") if backend == "cuda" else ""
    if not built or any(_runs(entry, found) for entry in re.split("[; ]+", built)):
        return None
    return f"the extension was built for {built}, this device is {got} (build it again, with TORCH_CUDA_ARCH_LIST)"


def _runs(entry: str, capability: tuple[int, int]) -> bool:
    """Whether code for one entry of TORCH_CUDA_ARCH_LIST runs on a device; names, such as Hopper, are not judged.

    Machine code runs on the same generation, from its minor version on; PTX on all later devices.
    """
    match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", entry)
    if match is None:
        return True
    built = (int(match[1]), int(match[2]))
    return built <= capability and (match[3] is not None or built[0] == capability[0])


def kernels(family: str, backend: str) -> ModuleType:
    """The module with the kernels of a family for a backend. All have the functions that the registry names."""
    return importlib.import_module(f"..{family}.{backend}", __package__)


@functools.cache
def _warn_once(op: str, device_type: str, reasons: str) -> None:
    warnings.warn(f"metricseg: {op} on {device_type} falls back to 'reference' ({reasons})", stacklevel=4)


def _requested(backend: str | None) -> str | None:
    name = backend or os.environ.get("METRICSEG_BACKEND") or None
    if name is not None and name not in BACKENDS:
        source = "backend" if backend else "METRICSEG_BACKEND"
        raise ValueError(f"{source} must be one of {BACKENDS} or None, got {name!r}")
    return name


def _transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode AD, is on: no kernel has a rule for them."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def capability(family: str, backend: str, name: str) -> int:
    """A flag or limit that stands in every backend module of a family, such as KEEPS_LOGITS."""
    value: int = getattr(kernels(family, backend), name)
    return value


def order(family: str, device_type: str, dtype: torch.dtype, op: str | None = None) -> tuple[str, ...]:
    """The backends that may take a call, the preferred one first."""
    record = FAMILIES[family]
    if device_type == "cuda" and record.cuda_but:
        exact = dtype == torch.float64 or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest")
        for case in (op, "exact" if exact else None):
            if case in record.cuda_but:
                return record.cuda_but[case]
    return getattr(record, device_type, ("reference",))


def choose(
    family: str,
    device: torch.device,
    dtype: torch.dtype,
    backend: str | None = None,
    op: str | None = None,
    volume: bool = False,
) -> str:
    """The backend for one call on tensors of a device and dtype; "reference" under torch.func and forward-mode AD.

    Raises RuntimeError with the reason if a backend asked for by name (argument or METRICSEG_BACKEND) can't run.
    """
    name = _requested(backend)
    if name is not None:
        reason = why_not(family, name, device, dtype, volume)
        if name != "reference" and reason is None and _transformed():
            reason = "torch.func and forward-mode AD take backend 'reference'"
        if reason is not None:
            raise RuntimeError(f"backend {name!r} can't run here: {reason}")
        return name
    if _transformed():
        return "reference"
    reasons: list[str] = []
    for candidate in order(family, device.type, dtype, op):
        reason = why_not(family, candidate, device, dtype, volume)
        if reason is None:
            if candidate == "reference" and reasons:
                _warn_once(family, device.type, "; ".join(reasons))
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise AssertionError("reference can always run")


# torch.compiler.assume_constant_result does just this, but imports torch._dynamo, which takes longer than torch itself
for constant in (capability, choose):
    setattr(constant, "_dynamo_marked_constant", True)  # noqa: B010 (a function has no such attribute, for mypy)
