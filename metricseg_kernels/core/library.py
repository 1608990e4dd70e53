"""The op library. Schemas are defined in Python, and the extension adds implementations only."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .names import NAMESPACE

ops: Any = types.SimpleNamespace()
"""Everything defined here, by name: what the package calls. torch.ops.metricseg has the same to the dispatcher."""
_library = torch.library.Library(NAMESPACE, "DEF")


def define_kernel(schema: str) -> None:
    """Define a raw kernel, which fills tensors that the caller allocated. The extension implements it per device."""
    _library.define(schema)
    name = schema.split("(")[0]
    setattr(ops, name, _overload(name))


def define_op(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define a functional op in front of the kernels, the same for every backend, for autograd and torch.compile."""
    name = schema.split("(")[0]
    backward = backward or _no_double_backward
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    setattr(ops, name, _direct(name, implementation, setup_context, backward))


def _overload(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _direct(
    name: str, implementation: Callable[..., Any], setup_context: Callable[..., None] | None,
    backward: Callable[..., Any],
) -> Callable[..., Any]:  # fmt: skip
    """The op past the dispatcher, where all that it would add is time: several times that of a small loss's kernels."""
    dispatched = _overload(name)

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = implementation(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

    Op.__name__ = name  # in a profile
    Op.backward = staticmethod(backward)  # type: ignore[method-assign]

    def op(*args: Any) -> Any:
        if torch.compiler.is_compiling() or _observed():
            return dispatched(*args)
        learns = False
        for arg in args:
            for tensor in arg if isinstance(arg, (list, tuple)) else (arg,):
                if isinstance(tensor, Tensor):
                    if type(tensor) not in _PLAIN or tensor.is_meta:
                        return dispatched(*args)
                    if tensor.requires_grad and torch.is_grad_enabled():
                        if tensor is not arg:  # autograd.Function does not look into lists
                            return dispatched(*args)
                        learns = True
        if learns:
            return Op.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return implementation(*args)

    return op


_PLAIN = (Tensor, torch.nn.Parameter)


def _observed() -> bool:
    """Whether a mode, a transform or a trace is on, which an op must not pass by."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def _no_double_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("metricseg: double backward runs only with backend='reference'")
