"""The focal family, every backend against the specification in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASE_PARAMS, CASES, FLOOR_PARAMS, FLOORS, Case, assert_as_good, assert_gradient, make, options
from guard import Guarded
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.focal import op, reference

NAMED = {c.id: c for c in CASES}


def skip_unsupported(backend: str, dtype: torch.dtype, device: str) -> None:
    if backend == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bf16 arithmetic")


def loss_and_grad(loss_fn, input: Tensor, target: Tensor, upstream: Tensor | None = None, **kwargs):
    x = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if x.stride() != input.stride():  # a strided case keeps its strides
        x = input.detach().requires_grad_()
    loss = loss_fn(x, target, **kwargs)
    loss.backward(upstream if upstream is None else upstream.to(loss))
    return loss.detach(), x.grad


def against_reference(loss_fn, case: Case, dtype: torch.dtype, backend: str, device: str, upstream_for=None, **kwargs):
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last."""
    skip_unsupported(backend, dtype, device)
    input, target, weight = make(case, dtype, device)
    if "weight" in kwargs:
        kwargs["weight"] = weight
    wide = {k: v.double().cpu() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in kwargs.items()}
    upstream = upstream_for(target) if upstream_for else None
    wide_target = target.cpu().double() if target.is_floating_point() else target.cpu()
    truth = loss_and_grad(loss_fn, input.double().cpu(), wide_target, upstream, **wide, backend="reference")
    plain = loss_and_grad(loss_fn, input, target, upstream, **kwargs, backend="reference")
    got = loss_and_grad(loss_fn, input, target, upstream, **kwargs, backend=backend)
    assert got[0].dtype == plain[0].dtype
    assert got[1].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    assert_gradient(got[1], plain[1], truth[1], dtype)
    return got


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_focal_mean(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    loss, grad = against_reference(mk.focal_loss, case, dtype, backend, device, weight=None, **options(case))
    assert loss.isfinite() and grad.isfinite().all()
    if case.labels == "ignored":
        assert loss == 0 and not grad.any()


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_focal_map(case: Case, backend: str, device: str) -> None:
    """reduction="none" with an upstream gradient per pixel."""
    rng = torch.Generator().manual_seed(1)
    against_reference(
        mk.focal_loss, case, torch.float32, backend, device, weight=None, reduction="none", **options(case),
        upstream_for=lambda t: torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t.device),
    )  # fmt: skip


@pytest.mark.parametrize("make_upstream", [lambda t: torch.ones((), device=t.device).expand(t.shape),
                                           lambda t: torch.rand(t.shape, device=t.device).mT.contiguous().mT],
                         ids=["expanded", "transposed"])  # fmt: skip
def test_upstream_gradient_of_any_stride(make_upstream, backend: str, device: str) -> None:
    case = NAMED["up4"]
    input, target, _ = make(case, device=device)
    upstream = make_upstream(target)
    grads = [
        torch.autograd.grad(mk.focal_loss(x := input.clone().requires_grad_(), target, reduction="none", backend=b), x,
                            upstream)[0]
        for b in (backend, "reference")
    ]  # fmt: skip
    assert_gradient(grads[0], grads[1], grads[1], torch.float32)


@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes", "identity", "ade", "ignored", "channels-last")],
                         ids=lambda c: c.id)  # fmt: skip
def test_cross_entropy_is_torchs(case: Case, backend: str, device: str) -> None:
    input, target, weight = make(case, device=device)

    def torchs(x: Tensor, reduction: str) -> Tensor:
        up = F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=case.align_corners)
        return F.cross_entropy(
            up, target.long(), weight, ignore_index=255, reduction=reduction, label_smoothing=case.label_smoothing
        )

    for reduction in ("mean", "sum", "none"):
        if case.labels == "ignored" and reduction == "mean":
            continue  # NaN there, 0 here
        theirs_x, ours_x = (input.clone().requires_grad_() for _ in range(2))
        theirs = torchs(theirs_x, reduction)
        ours = mk.cross_entropy(
            ours_x, target, weight=weight, label_smoothing=case.label_smoothing, reduction=reduction,
            align_corners=case.align_corners, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
        theirs.sum().backward()
        ours.sum().backward()
        torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes-aligned", "identity", "down", "ade", "ignored",
                                                     "huge", "huge-gamma", "confident", "strided", "channels-last",
                                                     "one-cell", "ratio-33", "empty-batch", "no-pixels")],
                         ids=lambda c: c.id)  # fmt: skip
def test_sigmoid_focal_of_labels(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    against_reference(mk.sigmoid_focal_loss, case, dtype, backend, device, gamma=case.gamma,
                      ignore_index=case.ignore_index, align_corners=case.align_corners)  # fmt: skip


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.5, -1.0), (0.0, 0.5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sigmoid_focal_is_torchvisions(gamma: float, alpha: float, reduction: str, backend: str, device: str) -> None:
    ops = pytest.importorskip("torchvision.ops")
    input, _target, _ = make(NAMED["primes"], device=device)
    dense = torch.rand(1, 19, 13, 37, device=device).round(decimals=1)  # 0, 1 and soft targets
    theirs_x, ours_x = (input.clone().requires_grad_() for _ in range(2))
    up = F.interpolate(theirs_x, size=(13, 37), mode="bilinear", align_corners=False)
    theirs = ops.sigmoid_focal_loss(up, dense, alpha=alpha, gamma=gamma, reduction=reduction)
    ours = mk.sigmoid_focal_loss(ours_x, dense, alpha=alpha, gamma=gamma, reduction=reduction, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=2e-6)
    upstream = torch.rand_like(theirs)
    theirs.backward(upstream)
    ours.backward(upstream)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=2e-6)


def test_labels_and_their_one_hot_map_agree(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["one-label"], device=device)
    one_hot = F.one_hot(target, 5).movedim(-1, 1).float()
    for reduction in ("mean", "sum", "none"):
        a = mk.sigmoid_focal_loss(input, target, reduction=reduction, backend=backend)
        b = mk.sigmoid_focal_loss(input, one_hot, reduction=reduction, backend=backend)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("thresh, min_kept", [(0.7, 10), (0.05, 100), (0.2, 0), (0.9, 10**6)])
def test_ohem_keeps_the_hard_pixels(thresh: float, min_kept: int, weighted: bool, backend: str, device: str) -> None:
    """Against the selection as it is usually written, with a sort."""
    input, target, _ = make(NAMED["up4"], device=device)
    weight = torch.rand(5, device=device) + 0.5 if weighted else None
    x = input.clone().requires_grad_()
    up = F.interpolate(x, size=target.shape[-2:], mode="bilinear")
    valid = target != 255
    ce = F.cross_entropy(up, target.long(), ignore_index=255, reduction="none", weight=weight)[valid]
    p = up.softmax(1).gather(1, target.long().clamp(max=4)[:, None])[:, 0][valid].detach()
    limit = max(p.sort().values[min_kept].item() if min_kept < len(p) else 2.0, thresh)
    expected = ce[p < limit].mean()
    ours_x = input.clone().requires_grad_()
    ours = mk.ohem_cross_entropy(ours_x, target, thresh=thresh, min_kept=min_kept, weight=weight, backend=backend)
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6)
    expected.backward()
    ours.backward()
    torch.testing.assert_close(ours_x.grad, x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("k", [0, 1, 499, 998, 999, 1000, 5000])
def test_kth_largest(k: int, dtype: torch.dtype, backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("it is the truth here")
    values = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)
    values[::7] = -1.0
    values[::11] = values[3]
    values[5], values[6] = torch.inf, 0.0
    got = torch.ops.metricseg.kth_largest(values, k, backend)
    assert got == reference.kth_largest(values, k)


@pytest.mark.parametrize("case", [NAMED[n] for n in ("up4", "primes", "identity", "ade", "down", "one-class")],
                         ids=lambda c: c.id)  # fmt: skip
def test_stats_come_from_the_same_pass(case: Case, backend: str, device: str) -> None:
    input, target, weight = make(case, device=device)
    loss, stats = mk.focal_loss(input, target, weight=weight, align_corners=case.align_corners, return_stats=True,
                                backend=backend)  # fmt: skip
    up = reference.upsample(input, tuple(target.shape[-2:]), case.align_corners)
    valid = target != 255
    # two classes within rounding of each other may swap
    top = up.gather(1, stats.argmax.long()[:, None])[:, 0]
    assert (up.amax(1) - top).max() < 1e-5
    assert stats.argmax.dtype == torch.int32
    assert stats.valid == valid.sum()
    assert stats.correct == ((stats.argmax == target) & valid).sum()
    assert loss == mk.focal_loss(input, target, weight=weight, align_corners=case.align_corners, backend=backend)


def test_normalizers(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], device=device)
    call = lambda **kw: mk.focal_loss(input, target, weight=weight, backend=backend, **kw)  # noqa: E731
    total, valid = call(reduction="sum"), target != 255
    torch.testing.assert_close(call(), total / valid.sum())
    torch.testing.assert_close(call(normalizer="weight"), total / weight[target[valid].long()].sum())
    torch.testing.assert_close(call(avg_factor=17.0), total / 17)
    torch.testing.assert_close(call(avg_factor=torch.tensor(17.0, device=device)), total / 17)


# --- gradients, operators, compilers -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case("a", (3, 2), (5, 7), classes=3, weighted=True, label_smoothing=0.2),
                                  Case("b", (3, 4), (2, 3), classes=2, gamma=0.5, align_corners=True),
                                  Case("c", (2, 3), (2, 3), classes=4, gamma=1.3)], ids=lambda c: c.id)  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(case: Case, reduction: str, backend: str, device: str) -> None:
    input, target, weight = make(case, torch.float64, device)
    input.requires_grad_()
    kwargs = {"reduction": reduction, "backend": backend, "align_corners": case.align_corners}
    assert torch.autograd.gradcheck(
        lambda x: mk.focal_loss(
            x, target, weight=weight, gamma=case.gamma, label_smoothing=case.label_smoothing, **kwargs
        ),
        input,
    )
    assert torch.autograd.gradcheck(lambda x: mk.sigmoid_focal_loss(x, target, gamma=case.gamma, **kwargs), input)


def test_gradgradcheck_of_the_reference() -> None:
    input, target, weight = make(Case("a", (3, 2), (5, 7), classes=3, weighted=True), torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x: mk.focal_loss(x, target, weight=weight, backend="reference"), input.requires_grad_()
    )


def test_double_backward_says_what_to_do(backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("it has double backward")
    input, target, _ = make(NAMED["up4"], device=device)
    for reduction in ("mean", "none"):
        x = input.clone().requires_grad_()
        loss = mk.focal_loss(x, target, reduction=reduction, backend=backend).square().sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="reference"):
            grad.sum().backward()


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    input, target, _ = make(NAMED["up4"], device=device)
    input.requires_grad_()
    loss = mk.focal_loss(input, target, backend=backend)
    first, second = (torch.autograd.grad(loss, input, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", ["up4", "channels-last"])
@pytest.mark.parametrize("reduce", [True, False])
def test_opcheck(layout: str, reduce: bool, backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("plain PyTorch")
    input, target, _ = make(NAMED[layout], device=device)
    weight = torch.rand(input.shape[1], device=device)
    input.requires_grad_()
    torch.library.opcheck(
        torch.ops.metricseg.focal_forward.default,
        (input, target, weight, None, 2.0, 0.1, 255, False, reduce, reduce, True, backend),
    )
    torch.library.opcheck(
        torch.ops.metricseg.sigmoid_focal_forward.default,
        (input, target, 2.0, 0.25, 255, False, reduce, reduce, backend),
    )
    if reduce:
        nll = torch.rand(50, device=device)
        torch.library.opcheck(torch.ops.metricseg.kth_largest.default, (nll, 3, backend))
        torch.library.opcheck(torch.ops.metricseg.scale_gradient.default, (input.detach(), nll[0]))
    else:
        grad = torch.rand((), device=device)
        torch.library.opcheck(
            torch.ops.metricseg.focal_backward.default,
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
    skip_unsupported(backend, torch.bfloat16, device)
    _, target, _ = make(NAMED["channels-last"], device=device)
    features = torch.randn(2, 8, 6, 7, device=device)
    head = torch.nn.Conv2d(8, 19, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        logits = head(features)
        loss = mk.focal_loss(logits, target, backend=backend)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert head.weight.grad.isfinite().all() and head.weight.grad.any()


# --- memory, bits, hosts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    if backend == "reference":
        pytest.skip("plain PyTorch")
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
def test_same_bits_twice_and_for_any_number_of_threads(case: Case, backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("PyTorch's own kernels decide")
    input, target, weight = make(case, device=device)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(loss_and_grad(mk.focal_loss, input, target, weight=weight, backend=backend, **options(case)))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in runs[1:]:
        assert torch.equal(loss, runs[0][0]) and torch.equal(grad, runs[0][1])


def test_gradient_has_the_inputs_memory_format(backend: str, device: str) -> None:
    if backend == "reference":
        pytest.skip("PyTorch's own kernels decide")
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
    skip_unsupported(backend, dtype, device)
    input, target, _ = make(Case("big", (8, 8), (64, 64), classes=4), dtype, device)
    scale = torch.tensor(65536.0, device=device)
    got = loss_and_grad(lambda x, t, **k: mk.cross_entropy(x, t, **k) * scale, input, target, backend=backend)[1]
    exact = loss_and_grad(lambda x, t, **k: mk.cross_entropy(x, t, **k) * 65536.0, input.double().cpu(), target.cpu(),
                          backend="reference")[1]  # fmt: skip
    torch.testing.assert_close(
        got.double().cpu(), exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype]
    )
