"""Loads the C++ extension, and remembers why where it could not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent.parent


def build_record() -> dict[str, Any]:
    """What the install wrote down: compilers, torch version, whether CUDA is in, and the error if the build failed."""
    path = _PACKAGE / "_build.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _load() -> str | None:
    libraries = sorted(_PACKAGE.glob("_C*.so")) + sorted(_PACKAGE.glob("_C*.pyd"))
    if not libraries:
        return (
            build_record().get("error")
            or "the extension was not built (pip install -e . with a C++ compiler builds it)"
        )
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f"{libraries[0].name} does not load: {error}"
    return None


error: str | None = _load()
"""None where the extension is loaded, else the reason."""


def has_kernels(device_type: str) -> bool:
    """Whether the loaded extension holds kernels for this device type ("cpu" or "cuda")."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device_type]
    return error is None and torch._C._dispatch_has_kernel_for_dispatch_key("metricseg::focal_kernel", key)
