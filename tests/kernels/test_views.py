"""Every op as its users call it: with views as arguments, where only the values count, and within torch's modes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from views import VIEWS

from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

OPS = {  # every op: (family, function, keyword arguments that are no tensors, tensor arguments)
    op: (family, *call) for family in FAMILIES for op, call in importlib.import_module(f"{family}_calls").OPS.items()
}
FIXED = ("weight", "target", "confidence", "anchor_weights", "contrast_weights")  # without a gradient
LEARNING = [op for op in OPS if not op.startswith(("sample", "ids", "topk", "vote", "labels", "confusion"))]
CALLS = [(op, argument) for op, (_, _, _, tensors) in OPS.items() for argument in tensors]


def family_of(params: dict[str, Any]) -> str:
    """The op family of a test's parameters."""
    return OPS[params["op"]][0]


def outputs(
    function: Callable[..., Any], tensors: dict[str, Tensor], view: Callable[[Tensor], Tensor], **options: Any
) -> list[Tensor]:
    """What the op gives, and the gradients of its floating outputs under upstream gradients that are views."""
    leaves = {
        name: t.detach().requires_grad_(t.is_floating_point() and name not in FIXED) for name, t in tensors.items()
    }
    found = function(**leaves, **options)
    found = [found] if isinstance(found, Tensor) else list(found)
    learning = [t for t in leaves.values() if t.requires_grad]
    floating = [o for o in found if o.requires_grad]
    rng = torch.Generator().manual_seed(1)
    normal = functools.partial(torch.randn, generator=rng, device="cpu", dtype=torch.float32)
    upstream = [view(normal(o.shape).to(o)) for o in floating]
    if floating:
        found += [g for g in torch.autograd.grad(floating, learning, upstream, allow_unused=True) if g is not None]
    return [t.detach() for t in found]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op, argument", CALLS)
def test_an_argument_is_its_values(op: str, argument: str, view: str, backend: str, device: str) -> None:
    _, function, options, tensors = OPS[op]
    tensors = {name: t.to(device) for name, t in tensors.items()}
    seen = VIEWS[view](tensors[argument])
    contiguous = lambda t: t.clone(memory_format=torch.contiguous_format)  # noqa: E731
    expected = outputs(function, tensors | {argument: contiguous(seen)}, contiguous, **options, backend=backend)
    got = outputs(function, tensors | {argument: seen}, contiguous, **options, backend=backend)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", LEARNING)
def test_an_incoming_gradient_is_its_values(op: str, view: str, backend: str, device: str) -> None:
    _, function, options, tensors = OPS[op]
    tensors = {name: t.to(device) for name, t in tensors.items()}
    expected = outputs(function, tensors, lambda t: VIEWS[view](t).contiguous(), **options, backend=backend)
    got = outputs(function, tensors, VIEWS[view], **options, backend=backend)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("op", LEARNING)
def test_checkpointing_changes_nothing(op: str, backend: str, device: str) -> None:
    """Of activations: what is saved for backward is looked at once."""
    _, function, options, tensors = OPS[op]
    tensors = {name: t.to(device) for name, t in tensors.items()}
    checkpointed = lambda **arguments: checkpoint(function, use_reentrant=False, **arguments)  # noqa: E731
    kept = outputs(function, tensors, lambda t: t, **options, backend=backend)
    got = outputs(checkpointed, tensors, lambda t: t, **options, backend=backend)
    for ours, theirs in zip(got, kept, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("op", OPS)
def test_defaults_of_torch_change_nothing(op: str, backend: str, device: str) -> None:
    """Neither the device of new tensors nor their dtype, as people set both to build a model."""
    _, function, options, tensors = OPS[op]
    tensors = {name: t.to(device) for name, t in tensors.items()}
    call = functools.partial(outputs, function, tensors, lambda t: t, **options, backend=backend)
    plain = call()
    with torch.device("meta"):
        of_device = call()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        of_dtype = call()
    finally:
        torch.set_default_dtype(before)
    for found in (of_device, of_dtype):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6, equal_nan=True)


def scalar_of(op: str, device: str, **options: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The sum of an op's first output as a function of its first argument, and that argument."""
    _, function, defaults, tensors = OPS[op]
    tensors = {name: t.to(device) for name, t in tensors.items()}
    leaf = next(iter(tensors))

    def scalar(x: Tensor) -> Tensor:
        found = function(**{**tensors, leaf: x}, **defaults, **options)
        return (found if isinstance(found, Tensor) else found[0]).sum()

    return scalar, tensors[leaf]


@pytest.mark.parametrize("op", LEARNING)
def test_transforms_of_torch_func(op: str) -> None:
    """They, and forward-mode AD, run on the reference; a backend asked for by name says so."""
    scalar, x = scalar_of(op, "cpu")
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scalar(leaf), leaf)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    along = (expected * direction).sum()
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(torch.func.grad(scalar)(x), expected)
    close(torch.func.vjp(scalar, x)[1](torch.ones(()))[0], expected)
    close(torch.func.jvp(scalar, (x,), (direction,))[1], along)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(scalar(forward_ad.make_dual(x, direction))).tangent, along)
    named, _ = scalar_of(op, "cpu", backend="cpu")
    if backends.why_not("focal", "cpu", "cpu") is None:
        with pytest.raises(RuntimeError, match="'cpu' can't run here: torch.func"):
            torch.func.grad(named)(x)


@pytest.mark.parametrize("op", OPS)
def test_tensors_without_values_give_shapes(op: str) -> None:
    """On the meta device, as accelerate and FSDP build models."""
    _, function, options, tensors = OPS[op]
    found = [function(**{n: t.to(d) for n, t in tensors.items()}, **options) for d in ("cpu", "meta")]
    here, there = ((f,) if isinstance(f, Tensor) else f for f in found)
    assert all(m.is_meta and m.shape == c.shape and m.dtype == c.dtype for c, m in zip(here, there, strict=True))
