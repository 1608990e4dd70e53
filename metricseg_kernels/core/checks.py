"""Argument checks that several families share. Each error names the argument, what it got, and what it takes."""

from __future__ import annotations

import math
import numbers
import os

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int32, torch.int64)


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def tensor(name: str, value: object, ndim: int, dtypes: tuple[torch.dtype, ...], layout: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor {layout}, got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must be {layout}, got shape {tuple(value.shape)}")
    if value.dtype not in dtypes:
        more = f"; write {name}.long()" if dtypes == LABELS else ""
        raise TypeError(f"{name} must have dtype {dtype_names(dtypes)}, got {dtype_names((value.dtype,))}{more}")


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, {other_name} on {other.device}; both must be on one device")


def real(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        more = "; it is a constant, without a gradient" if isinstance(value, Tensor) else ""
        raise TypeError(f"{name} must be a number, got {type(value).__name__}{more}")


def boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def number(name: str, value: float, low: float, high: float = math.inf) -> None:
    real(name, value)
    if not (low <= value <= high and abs(value) < math.inf):  # comparisons, which torch.compile can trace
        bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be finite and {bounds}, got {value}")


def integer(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, torch.SymInt):  # torch.export refuses bounds on a dimension of any size
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic runs in and losses come back in: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def validates(device: torch.device) -> bool:
    """Whether label errors raise: on the CPU always, elsewhere (a host sync) with METRICSEG_VALIDATE=1."""
    return device.type == "cpu" or os.environ.get("METRICSEG_VALIDATE", "0") == "1"
