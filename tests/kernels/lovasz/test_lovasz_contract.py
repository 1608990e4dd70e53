"""The lovasz family beyond its numbers: autograd, compilers, memory, threads and vector widths."""

from __future__ import annotations

import pytest
import torch
from gradients import gradcheck, loss_and_grad, widen
from guard import Guarded
from lovasz_calls import FINE, LOGITS
from lovasz_cases import CASE_PARAMS, CASES, NAMED, Case, make
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, assert_as_good, assert_gradient, skip_unsupported
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends
from metricseg_kernels.lovasz import op

FAMILY = "lovasz"

SMALL = [
    Case("a", (3, 2), (5, 7), classes=3, weighted=True, bins=7),
    Case("b", (3, 4), (2, 3), classes=2, options={"align_corners": True, "per_image": True}),
    Case("c", (2, 3), (2, 3), classes=4, options={"average": "classes"}, magnitude=2.0),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.id)
def test_gradcheck(case: Case, backend: str, device: str) -> None:
    """Between the borders of bins the loss is linear in the errors."""
    input, target, options = make(case, torch.float64, device)
    function = lambda x: mk.lovasz_loss(x, target, **options, backend=backend)  # noqa: E731
    gradcheck(function, input.requires_grad_(), backend, device, eps=1e-7)


@pytest.mark.kernels
def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    input, target, options = make(NAMED["up4"], device=device)
    x = input.clone().requires_grad_()
    for scale in (1.0, x.sum()):  # a gradient that is a constant, and one that depends on x
        loss = mk.lovasz_loss(x, target, **options, backend=backend) * scale
        with pytest.raises(RuntimeError, match="reference"):
            torch.autograd.grad(loss, x, create_graph=True)[0].sum().backward()


def test_same_bits_twice(backend: str, device: str) -> None:
    for name in ("up4", "primes", "images"):
        input, target, options = make(NAMED[name], device=device)
        first, second = (loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.kernels
def test_opcheck(layout: str, per_image: bool, backend: str, device: str) -> None:
    input, target, _ = make(NAMED["primes"]._replace(layout=layout), torch.float64, device)
    args = (input.requires_grad_(), target, 255, False, 16, per_image, backend)
    torch.library.opcheck(torch.ops.metricseg.lovasz_fwd.default, args)


def test_compile_fullgraph(backend: str, device: str) -> None:
    for name in ("images", "primes"):
        input, target, options = make(NAMED[name], device=device)
        step = lambda x, t=target, o=options: mk.lovasz_loss(2 * x, t, **o, backend=backend)  # noqa: E731
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found, expected = (loss_and_grad(lambda x, _, f=f: f(x), input, target) for f in (compiled, step))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    guarded = Guarded(op.kernels(backend))
    input, target, options = make(case, device=device)
    plain = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    found = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    assert guarded.calls
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.kernels
def test_nothing_of_label_size_is_saved(backend: str, device: str) -> None:
    input, target, options = make(NAMED["up4"], device=device)
    saved: list[torch.Tensor] = []
    input.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = mk.lovasz_loss(input, target, **options, backend=backend)
    assert loss.requires_grad
    given = (input.data_ptr(), target.data_ptr())
    assert all(t.numel() <= 5 * 2 * options["bins"] for t in saved if t.data_ptr() not in given)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_threads_change_no_bit(case: Case) -> None:
    if (reason := backends.why_not("lovasz", "cpu", "cpu")) is not None:
        pytest.skip(reason)
    input, target, options = make(case)
    found = []
    for _ in each_of(1, 2, 3, 7):
        found.append(loss_and_grad(mk.lovasz_loss, input, target, **options, backend="cpu"))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_threads_share_a_large_image() -> None:
    """Large enough for every thread to get a share, which the table's cases are not."""
    if (reason := backends.why_not("lovasz", "cpu", "cpu")) is not None:
        pytest.skip(reason)
    input, target = torch.randn(2, 19, 32, 40), torch.randint(0, 19, (2, 128, 160))
    found = []
    for _ in each_of(1, 2, 5):
        found += [loss_and_grad(mk.lovasz_loss, input, target, per_image=p, backend="cpu") for p in (False, True)]
    for i, pair in enumerate(found[2:]):
        assert all(torch.equal(a, b) for a, b in zip(found[i % 2], pair, strict=True))


@pytest.mark.kernels
def test_gradient_has_the_inputs_memory_format(backend: str, device: str) -> None:
    input, target, options = make(NAMED["channels-last"], device=device)
    _, grad = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_no_gradient_is_made_without_need(backend: str, device: str) -> None:
    assert not mk.lovasz_loss(LOGITS.to(device), FINE.to(device), backend=backend).requires_grad


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] != torch.float64])
def test_loss_scaling_survives_half_precision(dtype: torch.dtype, backend: str, device: str) -> None:
    """A gradient of some 1e-7 per cell, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    input, target, options = make(Case("big", (16, 16), (64, 64), classes=4, batch=1), dtype, device)
    scaled = lambda x, t, **o: mk.lovasz_loss(x, t, **o) * 65536.0  # noqa: E731
    got = loss_and_grad(scaled, input, target, **options, backend=backend)[1]
    exact = loss_and_grad(scaled, widen(input), target.cpu(), **options, backend="reference")[1]
    torch.testing.assert_close(
        got.double().cpu(), exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype]
    )


def compare_all() -> None:
    """Every case of the table in the vector width that METRICSEG_SIMD names."""
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            input, target, options = make(case, dtype)
            wide = {n: widen(v) for n, v in options.items()}
            truth = loss_and_grad(mk.lovasz_loss, widen(input), target, **wide, backend="reference")
            plain, got = (
                loss_and_grad(mk.lovasz_loss, input, target, **options, backend=b) for b in ("reference", "cpu")
            )
            assert_as_good(got[0], plain[0], truth[0], dtype)
            assert_gradient(got[1], plain[1], truth[1], dtype)


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_lovasz_contract", "compare_all")
