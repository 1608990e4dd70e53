"""What the ops of the focal family owe beyond their numbers: to autograd, compilers, memory, threads and hosts."""

from __future__ import annotations

import pytest
import torch
from focal_cases import CASE_PARAMS, NAMED, Case, loss_and_grad, make, options
from gradients import gradcheck
from guard import Guarded
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.focal import op

FAMILY = "focal"


@pytest.mark.parametrize("case", [Case("a", (3, 2), (5, 7), classes=3, weighted=True, label_smoothing=0.2),
                                  Case("b", (3, 4), (2, 3), classes=2, gamma=0.5, align_corners=True),
                                  Case("c", (2, 3), (2, 3), classes=4, gamma=1.3)], ids=lambda c: c.id)  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(case: Case, reduction: str, backend: str, device: str) -> None:
    input, target, weight = make(case, torch.float64, device)
    input.requires_grad_()
    kwargs = {"reduction": reduction, "backend": backend, "align_corners": case.align_corners}
    focal = {"weight": weight, "gamma": case.gamma, "label_smoothing": case.label_smoothing}
    for loss_fn, chosen in ((mk.focal_loss, focal), (mk.sigmoid_focal_loss, {"gamma": case.gamma})):
        gradcheck(lambda x, f=loss_fn, o=chosen: f(x, target, **o, **kwargs), input, backend, device)


def test_gradgradcheck_of_the_reference() -> None:
    input, target, weight = make(Case("a", (3, 2), (5, 7), classes=3, weighted=True), torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x: mk.focal_loss(x, target, weight=weight, backend="reference"), input.requires_grad_()
    )


@pytest.mark.kernels
def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    for reduction in ("mean", "none"):
        x = input.clone().requires_grad_()
        for scale in (1.0, x.sum()):  # a gradient that is a constant, and one that depends on x
            loss = (mk.focal_loss(x, target, reduction=reduction, backend=backend) * scale).sum()
            with pytest.raises(RuntimeError, match="reference"):
                torch.autograd.grad(loss, x, create_graph=True)[0].sum().backward()


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    input.requires_grad_()
    loss = mk.focal_loss(input, target, backend=backend)
    first, second = (torch.autograd.grad(loss, input, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.kernels
def test_opcheck(layout: str, reduce: bool, backend: str, device: str) -> None:
    input, target, _ = make(Case("small", (2, 3), (4, 6), batch=2, classes=3, layout=layout), device=device)
    weight = torch.rand(input.shape[1], device=device)
    input.requires_grad_()
    torch.library.opcheck(
        torch.ops.metricseg.focal_loss_fwd.default,
        (input, target, weight, None, 2.0, 0.1, 255, False, reduce, reduce, True, "weight" if reduce else "", backend),
    )
    torch.library.opcheck(
        torch.ops.metricseg.sigmoid_focal_fwd.default,
        (input, target, 2.0, 0.25, 255, False, reduce, reduce, backend),
    )
    if reduce:
        torch.library.opcheck(
            torch.ops.metricseg.ohem_threshold.default, (input.detach(), target, 3, 0.5, 255, False, backend)
        )
        scale = torch.rand((), device=device)
        torch.library.opcheck(torch.ops.metricseg.scale_gradient.default, (input.detach(), scale))
    else:
        grad = torch.rand((), device=device)
        torch.library.opcheck(
            torch.ops.metricseg.focal_bwd.default,
            (grad.expand(target.shape), input.detach(), target, weight, None, 2.0, 0.1, 255, False, backend),
        )


@pytest.mark.parametrize("loss_fn", [mk.focal_loss, mk.cross_entropy, mk.sigmoid_focal_loss, mk.ohem_cross_entropy],
                         ids=lambda f: f.__name__)  # fmt: skip
def test_compile_fullgraph(loss_fn, backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    kwargs = {"min_kept": 20} if loss_fn is mk.ohem_cross_entropy else {}
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, t: loss_fn(x * 1.5, t, backend=backend, **kwargs), fullgraph=True, backend="aot_eager"
    )
    ours = loss_and_grad(lambda x, t: compiled(x, t), input, target)
    eager = loss_and_grad(lambda x, t: loss_fn(x * 1.5, t, backend=backend, **kwargs), input, target)
    torch.testing.assert_close(ours[0], eager[0])
    torch.testing.assert_close(ours[1], eager[1])


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile_of_the_top_k_by_the_reference() -> None:
    """In one graph for all sizes of labels; tests/kernels/test_dynamic_sizes.py has the kernels."""
    input, target, _ = make(NAMED["up4"])
    torch._dynamo.reset()

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return mk.ohem_cross_entropy(x * 1.5, t, top_k_percent=0.3, backend="reference")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for labels in (target, target[:, :9].contiguous(), target[:, :, 2:].contiguous()):
        ours, eager = loss_and_grad(compiled, input, labels), loss_and_grad(loss, input, labels)
        torch.testing.assert_close(ours[0], eager[0])
        torch.testing.assert_close(ours[1], eager[1])


def test_compile_with_inductor(backend: str, device: str) -> None:
    """Ignored rows included: a compiled loss must not lose them silently."""
    input, target, _ = make(NAMED["up4"], device=device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t: mk.cross_entropy(x * 1.5, t, backend=backend), fullgraph=True)
    for labels in (target, torch.full_like(target, 255)):
        ours = loss_and_grad(lambda x, t: compiled(x, t), input, labels)
        eager = loss_and_grad(lambda x, t: mk.cross_entropy(x * 1.5, t, backend=backend), input, labels)
        torch.testing.assert_close(ours[0], eager[0])
        torch.testing.assert_close(ours[1], eager[1])


def test_autocast_takes_the_logits_as_they_are(backend: str, device: str) -> None:
    skip_unsupported(backend, torch.bfloat16)
    _, target, _ = make(NAMED["channels-last"], device=device)
    features = torch.randn(2, 8, 6, 7, device=device)
    head = torch.nn.Conv2d(8, 19, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        logits = head(features)
        loss = mk.focal_loss(logits, target, backend=backend)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad.isfinite().all() and head.weight.grad.any()


@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    guarded = Guarded(op.kernels(backend))
    input, target, weight = make(case, device=device)
    input.requires_grad_()
    call = lambda: (  # noqa: E731
        mk.focal_loss(input, target, weight=weight, return_stats=True, backend=backend, **options(case)),
        mk.sigmoid_focal_loss(input, target, ignore_index=case.ignore_index, backend=backend),
        mk.focal_loss(input, target, reduction="none", backend=backend, **options(case)),
    )
    plain = call()
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    watched = call()
    assert guarded.calls == 3
    for a, b in zip(_flatten(plain), _flatten(watched), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(watched[2].sum() + watched[0][0], input)
    # the map's backward is a kernel; the sum's is one where forward made no gradient: labels no finer than the logits
    forward_made_it = target[0].numel() > input[0, 0].numel() if case.batch else True
    assert guarded.calls == (4 if forward_made_it else 5) and grad.isfinite().all()


def _flatten(values) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [t for v in values for t in _flatten(v)]


@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes", "down", "ade", "up8-tall")], ids=lambda c: c.id)
@pytest.mark.kernels
def test_same_bits_twice_and_for_any_number_of_threads(case: Case, backend: str, device: str) -> None:
    input, target, weight = make(case, device=device)
    runs = []
    for _ in each_of(1, 1, 2, 3, backend=backend):
        runs.append(loss_and_grad(mk.focal_loss, input, target, weight=weight, backend=backend, **options(case)))
    for loss, grad in runs[1:]:
        assert torch.equal(loss, runs[0][0]) and torch.equal(grad, runs[0][1])


@pytest.mark.kernels
def test_gradient_has_the_inputs_memory_format(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["channels-last"], device=device)
    for reduction in ("mean", "none"):
        _, grad = loss_and_grad(
            lambda *a, r=reduction, **k: mk.focal_loss(*a, reduction=r, **k).sum(), input, target, backend=backend
        )
        assert grad.is_contiguous(memory_format=torch.channels_last)


def test_read_only_inputs(backend: str, device: str) -> None:
    """numpy hands out read-only arrays: labels decoded from a picture are such."""
    if device != "cpu":
        pytest.skip("numpy lives on the CPU")
    import warnings

    import numpy as np

    labels = np.zeros((1, 8, 12), np.uint8)
    labels.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = torch.from_numpy(labels)
    assert mk.cross_entropy(torch.zeros(1, 4, 4, 6), target, backend=backend) == pytest.approx(1.3862944)


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] != torch.float64])
def test_loss_scaling_survives_half_precision(dtype: torch.dtype, backend: str, device: str) -> None:
    """A gradient of 1e-6 per pixel, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    input, target, _ = make(Case("big", (8, 8), (64, 64), classes=4), dtype, device)
    scale = torch.tensor(65536.0, device=device)
    got = loss_and_grad(lambda x, t, **k: mk.cross_entropy(x, t, **k) * scale, input, target, backend=backend)[1]
    exact = loss_and_grad(lambda x, t, **k: mk.cross_entropy(x, t, **k) * 65536.0, input.double().cpu(), target.cpu(),
                          backend="reference")[1]  # fmt: skip
    torch.testing.assert_close(
        got.double().cpu(), exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype]
    )
