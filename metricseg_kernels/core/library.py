"""The op library. Schemas are defined in Python, and the extension adds implementations only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "metricseg"  # in csrc/common/host/library.h, too
ops = getattr(torch.ops, NAMESPACE)
_library = torch.library.Library(NAMESPACE, "DEF")


def define_kernel(schema: str) -> None:
    """Define a raw kernel, which fills tensors that the caller allocated. The extension implements it per device."""
    _library.define(schema)


def define_op(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define a functional op in front of the kernels, the same for every backend, for autograd and torch.compile."""
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    name = f"{NAMESPACE}::{name}"
    torch.library.register_fake(name, fake, lib=_library)
    torch.library.register_autograd(name, backward or _no_double_backward, setup_context=setup_context, lib=_library)


def _no_double_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("metricseg: double backward runs only with backend='reference'")
