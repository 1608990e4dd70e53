"""Host code that launchers of Triton kernels share."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backends import interpreting

# Fused multiply-adds are part of the formulas: a backward pass recomputes the values of forward, whose maxima it
# subtracts. Triton is about to turn them off by default.
FUSED = {"enable_fp_fusion": True}
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def asynchronous() -> bool:
    """Whether the target has matrix instructions that read both operands from shared memory."""
    return interpreting() or triton.runtime.driver.active.get_current_target().arch >= 90


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; triton.cdiv takes the host longer."""
    return -(-a // b)


def constant(value: Any) -> Any:
    """A value, or each of a tuple, as compile-time."""
    return tuple(map(constant, value)) if isinstance(value, tuple) else tl.constexpr(value)


def disguised(number: int) -> int:
    """4 n + 2, an integer in a tuple that Triton does not compile anew for: it would for a 1 or a multiple of 16."""
    return 4 * number + 2
