"""Load the C++ extension, and keep the reason if that fails."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import torch

from .names import EXTENSION, NAMESPACE

_PACKAGE = Path(__file__).resolve().parent.parent


def build_record() -> dict[str, Any]:
    """The record of the build: torch version, compilers, and if a part did not build the reason and their output."""
    path = _PACKAGE / "_build.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _library() -> Path | None:
    return next((path for suffix in ("so", "pyd") for path in sorted(_PACKAGE.glob(f"{EXTENSION}*.{suffix}"))), None)


def _load() -> str | None:
    library = _library()
    if library is None:
        return (
            build_record().get("error")
            or "the extension was not built (pip install -e . with a C++ compiler builds it)"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


error: str | None = _load()
"""None if the extension is loaded, else the reason."""


@functools.cache
def _why_no_cuda() -> str | None:
    """None if torch and the driver allow launches of the CUDA kernels that the extension has, else the reason."""
    ask = getattr(ctypes.CDLL(str(_library())), "metricseg_why_no_cuda", None)
    if ask is None:
        return "the extension was built from other sources (build it again)"
    ask.restype = ctypes.c_char_p
    reason: bytes | None = ask()
    return None if reason is None else reason.decode()


@functools.cache
def _implements(device_type: str) -> bool:
    """Whether the loaded extension has kernels for it."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device_type]
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::focal_kernel", key)


def why_no_kernels(device_type: str) -> str | None:
    """None if the loaded extension can run its kernels for this device type ("cpu" or "cuda"), else the reason."""
    if error is not None:
        return error
    if not _implements(device_type):
        return build_record().get("cuda_error") or "the extension was built without CUDA kernels"
    return _why_no_cuda() if device_type == "cuda" else None


def has_kernels(device_type: str) -> bool:
    """Whether the loaded extension can run its kernels for this device type ("cpu" or "cuda")."""
    return why_no_kernels(device_type) is None
