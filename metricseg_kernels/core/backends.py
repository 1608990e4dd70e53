"""Which backend takes a call. The choice looks at the device, never at data."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch.autograd import forward_ad

from . import extension

BACKENDS = ("reference", "cpu", "triton", "cuda")

# Order per op family and device, fastest first; on cuda by what is counted, until it is measured there.
#   anchors on cpu : benchmarks/results/cpu/anchors.json; the reference sorts every pixel, cpu none.
#   anchors on cuda: the reference sorts every pixel, in 130 operations against six.
#   centers on cpu : benchmarks/results/cpu/centers.json has cpu ahead of reference in every row.
#   centers on cuda: products of tiles are Triton's home.
#   focal on cpu : benchmarks/results/cpu/focal.json has cpu ahead of reference in every row.
#   focal on cuda: per-pixel work is CUDA C++'s home; Triton's padding to powers of two costs it 1.7 times the
#                  exponentials at K = 19 and K = 150.
ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "anchors": {"cpu": ("cpu", "reference"), "cuda": ("cuda", "reference")},
    "centers": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "focal": {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")},
    "contrast": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
}


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(backend: str, device_type: str) -> str | None:
    """None where `backend` can run on a device of this type here, else the reason."""
    if backend == "reference":
        return None
    if backend in ("cpu", "cuda"):
        if device_type != backend:
            return f"it runs on {backend} tensors, these are on {device_type}"
        return extension.why_no_kernels(device_type)
    if (missing := _triton_missing()) is not None:
        return missing
    if device_type == "cpu" and not interpreting():
        return "it runs on cuda tensors (on the CPU only interpreted, with TRITON_INTERPRET=1)"
    if device_type not in ("cpu", "cuda"):
        return f"it runs on cuda tensors, these are on {device_type}"
    return None


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


def choose(family: str, device_type: str, backend: str | None = None) -> str:
    """The backend for one call: under torch.func and forward-mode AD "reference".

    Raises RuntimeError with the reason where a backend asked for by name (argument or METRICSEG_BACKEND) can't run.
    """
    name = _requested(backend)
    if name is not None:
        known = {"reference", *(b for order in ORDER[family].values() for b in order)}
        reason = why_not(name, device_type) if name in known else f"{family} has no {name} kernels"
        if name != "reference" and reason is None and _transformed():
            reason = "torch.func and forward-mode AD take backend 'reference'"
        if reason is not None:
            raise RuntimeError(f"backend {name!r} can't run here: {reason}")
        return name
    if _transformed():
        return "reference"
    reasons: list[str] = []
    for candidate in ORDER[family].get(device_type, ("reference",)):
        reason = why_not(candidate, device_type)
        if reason is None:
            if candidate == "reference" and reasons:
                _warn_once(family, device_type, "; ".join(reasons))
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise AssertionError("reference can always run")


# torch.compiler.assume_constant_result does just this, but imports torch._dynamo, which takes longer than torch itself
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
