"""Ops past the dispatcher and through it: the same results, and whoever watches the dispatcher sees them."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import metricseg_kernels as mk
from metricseg_kernels.core import extension, library

pytestmark = pytest.mark.skipif(not extension.has_kernels("cpu"), reason=str(extension.why_no_kernels("cpu")))
INPUT = torch.linspace(-1, 2, 2 * 5 * 16).reshape(2, 5, 4, 4)
TARGET = torch.arange(2 * 64).reshape(2, 8, 8) % 5


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def loss_and_gradient(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = input.clone().requires_grad_()
    loss = mk.focal_loss(leaf, TARGET, backend="cpu")
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("mode", [Seen, Called])
def test_a_mode_sees_the_op_and_changes_nothing(mode) -> None:
    with mode() as seen:
        watched = loss_and_gradient(INPUT)
    assert "metricseg.focal_loss_fwd.default" in seen.names
    assert all(torch.equal(a, b) for a, b in zip(watched, loss_and_gradient(INPUT), strict=True))


def test_without_one_only_kernels_are_dispatched() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss_and_gradient(INPUT)
    names = {event.key for event in profile.key_averages()}
    assert "metricseg::focal_loss_fwd" not in names and {"focal_loss_fwd", "metricseg::focal_kernel"} <= names


def test_a_parameter_is_plain_and_a_subclass_is_not() -> None:
    class Own(torch.Tensor):
        pass

    kept = library.ops.predict_labels
    arguments = ([False], [1.0], False, [8, 8], torch.int32, False, False, "cpu")
    plain, own = (kept([x], *arguments)[0] for x in (INPUT, INPUT.as_subclass(Own)))
    assert torch.equal(plain, own) and torch.equal(plain, kept([torch.nn.Parameter(INPUT)], *arguments)[0])
    assert isinstance(own, Own)  # by torch's own rule for subclasses
